"""The fused neighbour counts: under the interpreter, and compiled ahead of time."""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops.information import reference
from helpers.triton_checks import (
    DEVICE,
    compiled_usage,
    compiles,
    needs_device,
    run_interpreted,
    starts_the_interpreter,
)

pytest.importorskip("triton")


@starts_the_interpreter
def test_the_kernel_under_the_interpreter():
    run_interpreted(__file__, 13)


@needs_device
@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("kind", ["general", "ties"])
@pytest.mark.parametrize(
    ("n", "rows", "k", "layers"),
    [(2, 2, 1, (1, 1)), (129, 4, 3, (2, 9)), (257, 2, 12, (1, 3))],
)
def test_counts_are_the_reference(n, rows, k, layers, kind, variant):
    scale = 1.5 if kind == "ties" else 1e4
    x, y = ((scale * torch.randn(count, n, 2)).round().to(DEVICE) for count in layers)
    distances = [reference.max_norm_distances(codes, range(n - rows, n)) for codes in (x, y)]
    counted = ops.ksg_counts(*distances, k, variant, backend="triton")
    expected = ops.ksg_counts(*distances, k, variant, backend="reference")
    assert all(map(torch.equal, counted, expected))


@needs_device
def test_information_is_the_reference():
    x, y = (reference.on_a_grid(torch.randn(2, 40, 2)).to(DEVICE) for _ in range(2))
    found = ops.ksg_information(x, y, 3, backend="triton")
    assert torch.equal(found, ops.ksg_information(x, y, 3, backend="reference"))


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_kernel_compiles_ahead_of_time_without_spills(architecture, variant, fresh_cache):  # noqa: F811
    from expertsteer.ops.information import triton_ksg

    constants = {"K": 3, "VARIANT": variant}
    constants |= {"LAYERS": triton_ksg.LAYERS, "POINTS": triton_ksg.POINTS}
    types = dict.fromkeys(("x", "y"), "*fp32") | dict.fromkeys(("n_x", "n_y"), "*i32")
    types |= dict.fromkeys(("layers_y", "rows", "n"), "i32")
    options = {"num_warps": triton_ksg.WARPS}
    kernel = triton_ksg.ksg_counts_kernel
    usage = compiled_usage(kernel, types, constants, architecture, fresh_cache, options=options)
    assert usage["LOCAL"] == 0 and usage["STACK"] == 0, usage
    assert 0 < usage["REG"] <= 128, usage
