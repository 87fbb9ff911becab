"""The fused steering operations: many distinct vectors in one batch, and native against torch.

    python -m pytest benchmarks/steering/bench_operations.py --benchmark-only

Each benchmark first checks its result against the reference in double precision and reports no
speed when that fails. Calls work on what the last one left; the cost does not depend on values.
By itself an addition of many vectors must read more memory than one of a single vector, which
stays in the nearest cache, so distinct vectors are also measured behind one linear layer.
"""

import pytest
import torch

from expertsteer import ops
from expertsteer.ops import extension
from expertsteer.ops.steering import reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(batch, tokens, width, distinct, dtype, device):
    table = torch.randn(distinct + 1, width)
    table[0] = 0
    rows = (torch.arange(batch) % distinct + 1).to(torch.int32).view(batch, 1)
    hidden = torch.randn(batch, tokens, width).to(dtype)
    strengths = torch.full((batch, 1), 0.5)
    return [t.to(device) for t in (hidden, table, rows, strengths)]


def prepare(device, dtype, backend, arguments, operation):
    """The chosen implementation, once its result has been checked."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = extension.why_not(torch.device(device), dtype) if backend == "native" else None
    if reason:
        pytest.skip(reason)
    hidden, table, rows, strengths = arguments
    exact = reference.steer(
        hidden.double(), table.double(), rows, strengths.double(), operation=operation
    )
    got = ops.steer(hidden.clone(), table, rows, strengths, operation=operation, backend=backend)
    if not torch.allclose(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4):
        pytest.fail("the result differs from the reference; no speed is reported")
    norms = ops.inverse_norms(table)
    steer = ops.choose("steer", backend, hidden.device, dtype)

    def call():
        steer(*arguments, operation=operation, inverse_norms=norms)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distinct", [1, 8, 64, 256])
@pytest.mark.parametrize("operation", ["add", "remove"])
def bench_distinct_vectors(benchmark, operation, distinct, dtype, device):
    arguments = inputs(256, 1, 4096, distinct, dtype, "cpu")
    if device == "cuda" and torch.cuda.is_available():
        arguments = [t.cuda() for t in arguments]
    call = prepare(device, dtype, "native", arguments, operation)
    benchmark.group = f"{operation}, 256 sequences of width 4096, {dtype}, {device}"
    benchmark.pedantic(call, rounds=60, iterations=10, warmup_rounds=5)


@pytest.mark.parametrize("distinct", [0, 1, 8, 64, 256])
def bench_distinct_vectors_behind_a_linear(benchmark, distinct):
    """0: the layer alone."""
    arguments = inputs(256, 1, 4096, max(distinct, 1), torch.float32, "cpu")
    prepare("cpu", torch.float32, "native", arguments, "add")
    hidden, *others = arguments
    weight = torch.randn(4096, 4096)
    steer = ops.choose("steer", "native", hidden.device, hidden.dtype)

    def call():
        out = hidden @ weight
        return steer(out, *others) if distinct else out

    benchmark.group = "one linear layer and an addition, 256 sequences of width 4096, float32, cpu"
    benchmark.pedantic(call, rounds=9, iterations=1, warmup_rounds=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (32, 1, 4096), (4, 256, 4096)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("operation", ops.STEER_OPERATIONS)
def bench_operation(benchmark, operation, backend, shape, dtype, device):
    arguments = inputs(*shape, shape[0], dtype, "cpu")
    if device == "cuda" and torch.cuda.is_available():
        arguments = [t.cuda() for t in arguments]
    call = prepare(device, dtype, backend, arguments, operation)
    benchmark.group = f"{operation} {shape} {dtype} {device}"
    benchmark.pedantic(call, rounds=15, iterations=5, warmup_rounds=2)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 256])
def bench_one_shared_vector(benchmark, tokens, dtype):
    """The commonest case."""
    hidden, table, rows, strengths = inputs(1, tokens, 4096, 1, dtype, "cpu")
    strengths.fill_(1.0)
    call = prepare("cpu", dtype, "native", [hidden, table, rows, strengths], "add")
    benchmark.group = f"one vector for (1, {tokens}, 4096) {dtype}"
    benchmark.pedantic(call, rounds=60, iterations=50, warmup_rounds=5)
