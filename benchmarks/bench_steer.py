"""What the addition of one vector costs. ``bench_inject.py`` has layers, steps and decodes.

    python -m pytest benchmarks/bench_steer.py --benchmark-only

Each benchmark first checks its result against the reference and reports no speed when that fails.
"""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import native, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def require(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 2048), (8, 128, 2048)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "native"])
def bench_steer_add(benchmark, backend, shape, dtype, device):
    require(device)
    reason = native.why_not(torch.device(device), dtype) if backend == "native" else None
    if reason:
        pytest.skip(reason)
    hidden = torch.randn(shape).to(device, dtype)
    delta = torch.randn(shape[2], device=device)
    expected = reference.steer_add(hidden, delta)
    if not torch.equal(ops.steer_add(hidden.clone(), delta, backend=backend), expected):
        pytest.fail("the result differs from the reference; no speed is reported")
    benchmark.group = f"steer_add {shape} {dtype} {device}"
    add = ops.choose("steer_add", backend, hidden.device, dtype)

    def call():
        add(hidden, delta)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=50, iterations=20, warmup_rounds=5)
