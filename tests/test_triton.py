"""The Triton kernels: under the interpreter against the reference, and compiled ahead of time.

The interpreter has to be chosen before triton is imported, so its checks run in their own process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expertsteer import RFM, ops

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="runs in the interpreter's own process (test_kernels_under_the_interpreter)",
)
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
SIZES = [(1, 1, 1), (2, 17, 2), (3, 65, 1), (1, 130, 3)]  # problems, points, outputs


@pytest.mark.skipif(INTERPRETED, reason="this test starts that process")
def test_kernels_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b10 passed", done.stdout), done.stdout  # it did run them


def problem(batch, n, outputs):
    points = torch.randn(batch, n, 6)
    if n > 3:
        points[:, 3] = points[:, 2]  # two points at distance zero
    points = points - points.mean(dim=1, keepdim=True)
    gram = (points @ points.mT).to(DEVICE)
    return gram, (torch.rand(batch) + 0.5).to(DEVICE), torch.randn(batch, n, outputs).to(DEVICE)


@needs_device
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_laplace_is_the_reference(batch, n, outputs):
    gram, bandwidth, _ = problem(batch, n, outputs)
    kernel, weights = ops.laplace(gram, bandwidth, backend="triton")
    expected = ops.laplace(gram.double(), bandwidth.double(), backend="reference")
    # Two equal points are at distance sqrt(rounding) in either precision: compare K there only.
    apart = ops.reference.distances(gram.double()) > 1e-2
    torch.testing.assert_close(kernel.double(), expected[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(weights[apart].double(), expected[1][apart], rtol=1e-3, atol=1e-6)
    assert torch.equal(kernel, kernel.mT) and torch.equal(weights, weights.mT)
    assert bool((weights.diagonal(dim1=1, dim2=2) == 0).all())


@needs_device
@pytest.mark.parametrize(("batch", "n", "outputs"), SIZES)
def test_agop_is_the_reference(batch, n, outputs):
    gram, bandwidth, alpha = problem(batch, n, outputs)
    _, weights = ops.laplace(gram, bandwidth, backend="reference")
    wide = [t.double() for t in (gram, weights, alpha)]
    right = torch.randn(batch, n, 9).to(DEVICE)
    for centre in (False, True):
        square = ops.agop(gram, weights, alpha, None, centre, backend="triton")
        carried = ops.agop(gram, weights, alpha, right, centre, backend="triton")
        for got, other in ((square, None), (carried, right.double())):
            expected = ops.agop(*wide, other, centre, backend="reference")
            scale = float(expected.abs().max())
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6 * scale + 1e-30)
        assert torch.equal(square, square.mT)


@needs_device
def test_a_whole_machine_runs_on_the_kernels():
    points = torch.randn(40, 8).to(DEVICE)
    labels = (points[:, 0] * points[:, 1] > 0).float()
    fast = RFM(backend="triton").fit(points, labels).direction_
    exact = RFM().fit(points.double(), labels.double()).direction_
    assert float(fast.double() @ exact) > 1 - 1e-4


def test_a_backend_that_cannot_serve_says_why():
    with pytest.raises(ops.BackendError, match="float64 is not torch.float32|is not a GPU"):
        ops.laplace(torch.zeros(1, 2, 2).double(), torch.ones(1).double(), backend="triton")
    if not INTERPRETED:
        with pytest.raises(ops.BackendError, match="TRITON_INTERPRET=1"):
            ops.laplace(torch.zeros(1, 2, 2), torch.ones(1), backend="triton")


def compiled_usage(kernel, signature, constants, architecture, folder, **options):
    """Registers and local memory of a kernel, from the cubin the bundled cuobjdump reads."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run(
        [tool, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL")}


def kernels():
    from expertsteer.ops import triton_agop, triton_laplace

    pointer, size = "*fp32", "i32"
    tile = {"BLOCK_M": triton_agop.BLOCK_M, "BLOCK_K": triton_agop.BLOCK_K, "PRECISION": "tf32x3"}
    launch = {"num_warps": triton_agop.WARPS, "num_stages": triton_agop.STAGES}
    yield (
        triton_laplace.laplace_kernel,
        {"gram": pointer, "bandwidth": pointer, "kernel": pointer, "weights": pointer}
        | {"n": size, "eps": "fp32"},
        {"BLOCK": triton_laplace.BLOCK},
        {},
    )
    names = ("weights", "alpha", "row_sums", "right", "rows_out")
    yield (
        triton_agop.gradient_rows_kernel,
        dict.fromkeys(names, pointer) | dict.fromkeys(("n", "m", "outputs"), size),
        tile | {"BLOCK_N": triton_agop.BLOCK_N},
        launch,
    )
    yield (
        triton_agop.symmetric_product_kernel,
        {"rows": pointer, "out": pointer, "n": size, "rows_count": size},
        tile,
        launch,
    )


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_ahead_of_time_without_spills(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # triton warns where it is not stated
    for kernel, signature, constants, options in kernels():
        signature = signature | dict.fromkeys(constants, "constexpr")
        usage = compiled_usage(kernel, signature, constants, architecture, tmp_path, **options)
        name = kernel.__name__
        assert usage["LOCAL"] == 0 and usage["STACK"] == 0, (name, architecture, usage)
        assert 0 < usage["REG"] <= 255, (name, architecture, usage)
