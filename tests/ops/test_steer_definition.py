"""`ops.steer`: every backend is the definition, token by token, to the rounding of its type."""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops.steering.reference import displacements
from helpers.steer_calls import DTYPES, OPERATIONS, SHAPES, assert_close, by_hand, case, without


@pytest.mark.parametrize("conditions", ["none", "mask", "gates", "mask and gates"])
@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_backend_is_the_definition(
    backend, device, operation, dtype, shape, vectors, conditions
):
    arguments = case(shape, dtype, device, vectors)
    if "mask" not in conditions:
        arguments = without(arguments, "mask")
    if "gates" not in conditions:
        arguments = without(arguments, "gates", "thresholds")
    expected = by_hand(**arguments, operation=operation)
    hidden = arguments["hidden"].clone()
    out = ops.steer(**arguments | {"hidden": hidden}, operation=operation, backend=backend)
    assert out.dtype == dtype and out.shape == hidden.shape
    assert_close(out, expected, arguments["table"].dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_entry_serves_all_sequences(backend, device, operation, dtype):
    arguments = case((4, 3, 33), dtype, device, vectors=3, shared=True)
    each = {
        name: arguments[name].expand(4, *arguments[name].shape[1:])
        for name in ("rows", "strengths", "gates", "thresholds")
    }
    hidden = arguments["hidden"]
    outs = [
        ops.steer(**a | {"hidden": hidden.clone()}, operation=operation, backend=backend)
        for a in (arguments, arguments | each, arguments | {"rows": each["rows"]})
    ]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], hidden)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_are_served(backend, device, operation, dtype):
    whole = case((4, 6, 48), dtype, device, vectors=2)
    whole["table"] = whole["table"][:, :20].contiguous()
    hidden, mask = whole["hidden"], whole["mask"]
    views = {
        "columns": (hidden[:, :, :20], mask),
        "rows": (hidden[::2, 1::2, 25:45], mask[::2, 1::2]),
        "sequences and tokens swapped": (hidden[:, :, :20].transpose(0, 1), mask.T),
        "every other element": (hidden[:, :, 1:41:2], mask),
        "tokens and elements swapped": (hidden.flatten()[:480].view(4, 20, 6).mT, mask),
        "one sequence expanded": (hidden[:1, :, :20].expand(4, 6, 20), mask),
    }
    kept = hidden.clone()
    for name, (view, chosen) in views.items():
        shared = {k: whole[k][:1] for k in ("rows", "strengths", "gates", "thresholds")}
        arguments = whole | shared | {"mask": chosen}
        outside = arguments | {"hidden": view.clone(memory_format=torch.contiguous_format)}
        expected = by_hand(**outside, operation=operation)
        out = ops.steer(**arguments | {"hidden": view}, operation=operation, backend=backend)
        assert_close(out, expected, whole["table"].dtype)
        in_place = out.data_ptr() == view.data_ptr()
        assert in_place == (backend == "native" and "expanded" not in name), name
        hidden.copy_(kept)


def test_strided_writes_stay_within_the_view():
    arguments = case((2, 3, 34), torch.float32)
    arguments["table"] = arguments["table"][:, :17].contiguous()
    hidden = arguments["hidden"]
    between = hidden[:, :, 1::2].clone()
    ops.steer(**arguments | {"hidden": hidden[:, :, ::2]}, operation="remove", backend="native")
    assert torch.equal(hidden[:, :, 1::2], between)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_is_the_wide_sum_rounded_once(backend, device, dtype, shape, vectors, masked):
    arguments = without(case(shape, dtype, device, vectors), "gates", "thresholds")
    hidden, table, strengths, mask = (
        arguments[name] for name in ("hidden", "table", "strengths", "mask")
    )
    arguments["rows"] = torch.randint_like(arguments["rows"], 1, 5)
    delta = strengths[:, 0, None] * table[arguments["rows"][:, 0].long()]
    if vectors == 2:
        delta = delta + strengths[:, 1, None] * table[arguments["rows"][:, 1].long()]
    expected = (hidden.to(table.dtype) + delta[:, None]).to(dtype)
    if masked:
        expected = torch.where(mask.unsqueeze(-1), expected, hidden)
    call = arguments | {"hidden": hidden.clone(), "mask": mask if masked else None}
    assert torch.equal(ops.steer(**call, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_survives_and_rounds_like_torch(backend, device, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    hidden = every.reshape(1, 256, 256).to(device)
    table = torch.tensor([0.0, 1.0], device=device).view(2, 1).repeat(1, 256)
    rows = torch.ones(1, 1, dtype=torch.int32, device=device)
    for shift in (2.0**-149, 2.0**-25, 0.1, -3.7, 6e4):
        strengths = torch.full((1, 1), shift, device=device)
        out = ops.steer(hidden.clone(), table, rows, strengths, backend=backend)
        expected = (hidden.float() + shift).to(dtype)
        nan = torch.isnan(expected)
        assert torch.equal(torch.isnan(out), nan)
        assert torch.equal(out[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_as_many_distinct_vectors_as_sequences(backend, device):
    arguments = case((256, 1, 40), torch.float32, device, table_rows=257)
    arguments["rows"] = torch.randperm(256).to(torch.int32).view(256, 1).to(device) + 1
    arguments = without(arguments, "mask")
    for operation in OPERATIONS:
        expected = by_hand(**arguments, operation=operation)
        hidden = arguments["hidden"].clone()
        out = ops.steer(**arguments | {"hidden": hidden}, operation=operation, backend=backend)
        assert_close(out, expected, torch.float32)


def test_threads_do_not_change_a_bit(device):
    """Large enough for several threads; one sequence at a time is not."""
    arguments = case((5, 300, 3001), torch.bfloat16, vectors=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for operation in ("add", "remove"):
            hidden = arguments["hidden"].clone()
            together = ops.steer(**arguments | {"hidden": hidden}, operation=operation)
            for b in range(5):
                alone = {
                    name: t if name == "table" else t[b : b + 1].clone()
                    for name, t in arguments.items()
                }
                assert torch.equal(ops.steer(**alone, operation=operation)[0], together[b])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_given_norms_change_nothing(backend, device, operation):
    arguments = case((2, 3, 33), torch.float32, device, 2)
    given = ops.inverse_norms(arguments["table"])
    outs = [
        ops.steer(
            **arguments | {"hidden": arguments["hidden"].clone()},
            operation=operation,
            inverse_norms=norms,
            backend=backend,
        )
        for norms in (None, given)
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize("sequences", [1, 3])
def test_displacements_are_what_an_addition_adds(sequences):
    tables = torch.randn(2, 4, 17, dtype=torch.float64)
    tables[:, 0] = 0
    rows = torch.tensor([[1, 3], [0, 0], [2, 1]], dtype=torch.int32)[:sequences]
    strengths = torch.tensor([[0.5, -2.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)[:sequences]
    mask = torch.tensor([[1, 0], [1, 1], [1, 1]]).bool()
    hidden = torch.randn(3, 2, 17, dtype=torch.float64)
    hidden[:, :, 0] = -0.0
    added = displacements(tables, rows, strengths, mask)
    for table, own in zip(tables, added):
        expected = ops.steer(hidden, table, rows, strengths, mask, backend="reference")
        torch.testing.assert_close(hidden + own, expected)
        kept = (expected == hidden).all(-1)
        assert kept.sum() >= 1
        assert torch.equal((hidden + own)[kept].view(torch.int64), hidden[kept].view(torch.int64))
