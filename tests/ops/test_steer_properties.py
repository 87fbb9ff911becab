"""`ops.steer`: what each operation keeps, and what no call may touch."""

import pytest
import torch

from expertsteer import ops
from helpers.steer_calls import DTYPES, OPERATIONS, case, without


def components(hidden, vector):
    return hidden.double() @ (vector.double() / vector.double().norm())


def test_removing_twice_is_removing_once(backend, device):
    arguments = without(case((2, 3, 65), torch.float64, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(2)
    arguments["strengths"].fill_(1)
    once = ops.steer(**arguments, operation="remove", backend=backend).clone()
    twice = ops.steer(**arguments | {"hidden": once.clone()}, operation="remove", backend=backend)
    torch.testing.assert_close(twice, once, atol=1e-14, rtol=0)
    assert float(components(once, arguments["table"][2]).abs().max()) < 1e-14


def test_a_clamped_component_is_the_value_and_the_rest_stays(backend, device):
    arguments = without(case((2, 3, 65), torch.float64, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(3)
    for value in (-2.5, 0.0):  # zero is a value like any other
        arguments["strengths"].fill_(value)
        hidden = arguments["hidden"].clone()
        out = ops.steer(**arguments | {"hidden": hidden}, operation="clamp", backend=backend)
        along = components(out, arguments["table"][3])
        torch.testing.assert_close(along, torch.full_like(along, value), atol=1e-13, rtol=0)
        unit = arguments["table"][3] / arguments["table"][3].norm()
        for x in (out, arguments["hidden"]):
            x -= components(x, unit).unsqueeze(-1) * unit
        torch.testing.assert_close(out, arguments["hidden"], atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_keep_norm_keeps_norms_and_leaves_zero_at_zero(backend, device, dtype):
    arguments = without(case((2, 3, 65), dtype, device, 2), "mask", "gates", "thresholds")
    before = arguments["hidden"].double().norm(dim=-1)
    hidden = arguments["hidden"].clone()
    out = ops.steer(**arguments | {"hidden": hidden}, operation="add_keep_norm", backend=backend)
    assert not torch.equal(out, arguments["hidden"])
    torch.testing.assert_close(out.double().norm(dim=-1), before, rtol=1e-6, atol=0)
    # The vector itself, taken away: nothing is left that could be rescaled.
    one = arguments | {"rows": arguments["rows"][:, :1] * 0 + 1}
    one["strengths"] = torch.full_like(arguments["strengths"][:, :1], -1.0)
    one["hidden"] = arguments["table"][1].expand(2, 3, 65).clone()
    out = ops.steer(**one, operation="add_keep_norm", backend=backend)
    assert bool((out == 0).all())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_steered_keeps_its_bits(backend, device, operation, dtype):
    arguments = case((4, 5, 33), dtype, device, 2)
    hidden = arguments["hidden"]
    hidden[0, 0, 3], hidden[1, 1, 4] = float("nan"), float("inf")
    hidden[:, :, 9] = -0.0
    mask = arguments["mask"]
    shut = torch.full_like(arguments["thresholds"], float("inf"))
    idle = {
        "masked": {"mask": torch.zeros_like(mask)},
        "behind a gate": {"gates": arguments["gates"] * 0 + 1, "thresholds": shut},
        "without a vector": {"rows": torch.zeros_like(arguments["rows"])},
        "half masked": {},
    }
    if operation != "clamp":
        idle["without strength"] = {"strengths": torch.zeros_like(arguments["strengths"])}
    for name, change in idle.items():
        everywhere = {} if name == "half masked" else {"mask": torch.ones_like(mask)}
        call = arguments | everywhere | change | {"hidden": hidden.clone()}
        out = ops.steer(**call, operation=operation, backend=backend)
        kept = ~mask if name == "half masked" else torch.ones_like(mask)
        integers = torch.int16 if dtype.itemsize == 2 else torch.int32
        assert torch.equal(out[kept].view(integers), hidden[kept].view(integers)), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unselected_tokens_do_not_reach_the_others(backend, device, operation):
    arguments = without(case((2, 3, 17), torch.float32, device), "gates", "thresholds")
    hidden, mask = arguments["hidden"], arguments["mask"]
    hidden[~mask] = float("nan")
    out = ops.steer(**arguments | {"hidden": hidden.clone()}, operation=operation, backend=backend)
    assert bool(torch.isnan(out[~mask]).all()) and bool(torch.isfinite(out[mask]).all())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_nan_stays_where_it_is(backend, device, operation):
    arguments = without(case((2, 3, 33), torch.float32, device), "mask", "gates", "thresholds")
    arguments["rows"].fill_(1)
    arguments["hidden"][0, 1, 7] = float("nan")
    out = ops.steer(**arguments, operation=operation, backend=backend)
    assert torch.isnan(out).nonzero().tolist() == [[0, 1, 7]]


@pytest.mark.parametrize("operation", ["remove", "clamp"])
def test_zero_vectors_are_skipped(backend, device, operation):
    arguments = without(case((2, 3, 33), torch.float32, device), "mask", "gates", "thresholds")
    arguments["table"][2] = 0
    arguments["rows"].fill_(2)
    arguments["hidden"][1, 2, 3] = -0.0
    bits = arguments["hidden"].clone().view(torch.int32)
    out = ops.steer(**arguments, operation=operation, backend=backend)
    assert torch.equal(out.view(torch.int32), bits)
