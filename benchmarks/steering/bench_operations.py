"""The fused steering operations: many distinct vectors in one batch, and native against torch.

python -m pytest benchmarks/steering/bench_operations.py --benchmark-only
"""

import pytest
import torch

from benchmarks.steering.gates_operations import BEHIND_LINEAR, OPERATION
from expertsteer import ops
from expertsteer.ops import extension

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16]


def timed(benchmark, group, size, **rounds):
    backend, device = size.get("backend", "native"), size["device"]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if backend == "native" and (reason := extension.why_not(torch.device(device), size["dtype"])):
        pytest.skip(reason)
    calls = 1 if device == "cuda" else 0
    OPERATION.time(benchmark, backend, group, size, calls, **rounds)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distinct", [1, 8, 64, 256])
@pytest.mark.parametrize("operation", ["add", "remove"])
def bench_distinct_vectors(benchmark, operation, distinct, dtype, device):
    group = f"{operation}, 256 sequences of width 4096, {dtype}, {device}"
    size = {"shape": (256, 1, 4096), "distinct": distinct, "dtype": dtype, "device": device}
    timed(benchmark, group, size | {"operation": operation}, rounds=60, iterations=10)


@pytest.mark.parametrize("distinct", [0, 1, 8, 64, 256])
def bench_distinct_vectors_behind_a_linear(benchmark, distinct):
    """0: the layer alone."""
    group = "one linear layer and an addition, 256 sequences of width 4096, float32, cpu"
    size = {"batch": 256, "width": 4096, "distinct": distinct}
    BEHIND_LINEAR.time(benchmark, "linear", group, size, rounds=9, warmup_rounds=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (32, 1, 4096), (4, 256, 4096)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("operation", ops.STEER_OPERATIONS)
def bench_operation(benchmark, operation, backend, shape, dtype, device):
    size = {"shape": shape, "distinct": shape[0], "dtype": dtype, "device": device}
    size |= {"operation": operation, "backend": backend}
    timed(benchmark, f"{operation} {shape} {dtype} {device}", size, rounds=15, iterations=5)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 256])
def bench_one_shared_vector(benchmark, tokens, dtype):
    """The commonest case."""
    size = {"shape": (1, tokens, 4096), "distinct": 1, "dtype": dtype, "device": "cpu"}
    timed(benchmark, f"one vector for (1, {tokens}, 4096) {dtype}", size, rounds=60, iterations=50)
