"""The fused neighbour counts: under the interpreter, and compiled ahead of time.

The interpreter has to be chosen before triton is imported, so its checks run in their own process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import reference_mi

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="runs in the interpreter's own process (test_the_kernel_under_the_interpreter)",
)
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


@pytest.mark.skipif(INTERPRETED, reason="this test starts that process")
def test_the_kernel_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b13 passed", done.stdout), done.stdout  # it did run them


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
    distances = [reference_mi.max_norm_distances(codes, range(n - rows, n)) for codes in (x, y)]
    counted = ops.ksg_counts(*distances, k, variant, backend="triton")
    expected = ops.ksg_counts(*distances, k, variant, backend="reference")
    assert all(map(torch.equal, counted, expected))


@needs_device
def test_information_is_the_reference():
    x, y = (reference_mi.on_a_grid(torch.randn(2, 40, 2)).to(DEVICE) for _ in range(2))
    found = ops.ksg_information(x, y, 3, backend="triton")
    assert torch.equal(found, ops.ksg_information(x, y, 3, backend="reference"))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_kernel_compiles_ahead_of_time_without_spills(
    architecture, variant, tmp_path, monkeypatch
):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from expertsteer.ops import triton_ksg

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # triton warns where it is not stated
    constants = {"K": 3, "VARIANT": variant}
    constants |= {"LAYERS": triton_ksg.LAYERS, "POINTS": triton_ksg.POINTS}
    signature = dict.fromkeys(("x", "y"), "*fp32") | dict.fromkeys(("n_x", "n_y"), "*i32")
    signature |= dict.fromkeys(("layers_y", "rows", "n"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=triton_ksg.ksg_counts_kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": triton_ksg.WARPS})
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {
        name: int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL")
    }
    assert usage["LOCAL"] == 0 and usage["STACK"] == 0, usage
    assert 0 < usage["REG"] <= 128, usage
