"""What the benchmarks of the fused operations compare before they time: with double precision.

Calls work on what the last one left; the cost does not depend on values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.registry import Case, Gate, benchmark
from benchmarks.steering import cases
from expertsteer import ops
from expertsteer.ops.steering import reference as reference_steer


class Exact(NamedTuple):
    """A result in double precision, and what rounding to its dtype may change."""

    result: Tensor
    relative: float
    absolute: float = 1e-4


def rounded_off(found: Tensor, exact: Exact) -> float:
    """The largest error as a multiple of what rounding may change."""
    allowed = exact.absolute + exact.relative * exact.result.abs()
    return float(((found.double() - exact.result).abs() / allowed).max())


ROUNDED = Gate("the result with the reference in double precision", 1.0, rounded_off, "roundings")


def inputs(shape, distinct, dtype, device):
    batch, tokens, width = shape
    table = torch.randn(distinct + 1, width)
    table[0] = 0
    rows = (torch.arange(batch) % distinct + 1).to(torch.int32).view(batch, 1)
    hidden = torch.randn(batch, tokens, width).to(dtype)
    strengths = torch.full((batch, 1), 0.5)
    return [t.to(device) for t in (hidden, table, rows, strengths)]


@benchmark(
    "steering.operation",
    gate=ROUNDED,
    smallest={"shape": (2, 3, 16), "distinct": 2, "dtype": torch.bfloat16},
)
def OPERATION(
    stack, shape, distinct, dtype, operation="add", backend="native", device="cpu"
) -> Case:
    """One fused operation of so many distinct vectors in a batch."""
    hidden, table, rows, strengths = inputs(shape, distinct, dtype, device)
    exact = reference_steer.steer(
        hidden.double(), table.double(), rows, strengths.double(), operation=operation
    )
    options = {"operation": operation, "inverse_norms": ops.inverse_norms(table)}
    steer = ops.choose("steer", backend, hidden.device, dtype)
    found = ops.steer(hidden.clone(), table, rows, strengths, operation=operation, backend=backend)
    works = {backend: lambda: steer(hidden, table, rows, strengths, **options)}
    return Case(works, {backend: found}, Exact(exact, torch.finfo(dtype).eps))


@benchmark(
    "steering.behind_linear",
    gate=Gate("the result with double precision's", 1e-4, cases.difference, "of the largest entry"),
    smallest={"batch": 3, "width": 16, "distinct": 2},
)
def BEHIND_LINEAR(stack, batch, width, distinct) -> Case:
    """One linear layer, and an addition unless ``distinct`` is 0.

    By itself an addition of many vectors must read more memory than one of a single vector, which
    stays in the nearest cache; behind a layer neither is there.
    """
    hidden, table, rows, strengths = inputs(
        (batch, 1, width), max(distinct, 1), torch.float32, "cpu"
    )
    weight = torch.randn(width, width)
    steer = ops.choose("steer", "native", hidden.device, hidden.dtype)
    norms = ops.inverse_norms(table)

    def call():
        out = hidden @ weight
        if not distinct:
            return out
        return steer(out, table, rows, strengths, operation="add", inverse_norms=norms)

    exact = hidden.double() @ weight.double()
    if distinct:
        exact = reference_steer.steer(exact, table.double(), rows, strengths.double())
    return Case({"linear": call}, {"linear": call()}, exact)
