"""Which of three regimes fits a problem, by operations and bytes that anyone can read and override.

==========  ==================================  ===============================================
regime      keeps                               floating-point operations per AGOP update
==========  ==================================  ===============================================
gram        4 + (1 + C) iters n x n matrices     n^3/3 + 3 C n^3
feature     2 n x n, some n x d and d x d        n^3/3 + (1 + 2 C) n^2 d + (C + 2) n d^2
streamed    what the memory budget allows        passes over n^2/2 kernel entries, 2 d each
==========  ==================================  ===============================================

The Gram matrix itself costs n^2 d once in the Gram regime, so that regime wins up to n of about
1.5 d, the feature regime beyond, as long as n x n fits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..support.numbers import count, short

REGIMES = ("gram", "feature", "streamed")
LEAST_TILE, MOST_TILE, LEAST_RANK = 256, 1024, 128
WORKSPACE = 16 << 20  # bytes that the matrix libraries take for themselves
SOLVER_PASSES = 20  # over the kernel, per fit: what the preconditioned solver typically takes


@dataclass(frozen=True)
class Plan:
    """What a fit will do.

    Attributes:
        regime: one of ``"gram"``, ``"feature"``, ``"streamed"``.
        operations: floating-point operations of one problem, per regime.
        bytes: peak memory of one problem beside its data, per regime.
        memory_budget: bytes that may be used.
        problems_at_once, settings_at_once: of a batch and of a grid, in lockstep; 1 on a CPU, where
            one problem fills the cores and its matrices the caches.
        reason: why this regime, in a sentence.
    """

    regime: str
    operations: dict[str, float]
    bytes: dict[str, int]
    memory_budget: int
    problems_at_once: int
    settings_at_once: int
    reason: str

    def room(self, problems: int) -> int:
        """Bytes in which steps may be kept for later predictions, beside the problems at work."""
        if problems <= self.problems_at_once:  # their steps are part of their own need
            return self.memory_budget
        return self.memory_budget - self.problems_at_once * self.bytes[self.regime]


def plan(
    n: int,
    d: int,
    *,
    outputs: int = 1,
    problems: int = 1,
    settings: int = 1,
    iters: int = 3,
    normalize: str = "none",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    memory_budget: int | None = None,
    regime: str = "auto",
) -> Plan:
    """The plan for ``problems`` problems of n points in d dimensions, each under ``settings``
    settings of a grid; ``regime`` overrides the choice.

    Raises:
        ValueError: an unknown regime, or one whose memory exceeds the budget.
    """
    device = torch.device(device)
    budget = default_memory_budget(device) if memory_budget is None else memory_budget
    if budget <= 0:
        raise ValueError(f"memory_budget must be a positive number of bytes, came {budget}")
    operations = _operations(n, d, outputs, iters, normalize)
    needed = _bytes(n, d, outputs, iters, dtype.itemsize)
    if settings > 1:  # the best setting so far is kept beside the one at work
        needed["gram"] += dtype.itemsize * (1 + (1 + outputs) * iters) * n * n
    if regime == "auto":
        regime, reason = _choose(operations, needed, budget)
    elif regime not in REGIMES:
        raise ValueError(f"regime must be 'auto' or one of {REGIMES}, came {regime!r}")
    else:
        reason = f"regime={regime!r} was asked for"
    if needed[regime] > budget:
        raise ValueError(
            f"regime {regime!r} needs {count(needed[regime])} bytes beside the data for {n} x {d} "
            f"points, memory_budget is {count(budget)}; raise memory_budget"
            + ("" if regime == "streamed" else " or take regime='auto'")
        )
    at_once = budget // needed[regime] if device.type == "cuda" and regime == "gram" else 1
    settings_at_once = min(settings, max(1, at_once))
    problems_at_once = max(1, min(problems, at_once // settings))
    return Plan(regime, operations, needed, budget, problems_at_once, settings_at_once, reason)


def default_memory_budget(device: torch.device) -> int:
    """Half of the machine's memory, or four fifths of what is free on a GPU, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _operations(n: int, d: int, outputs: int, iters: int, normalize: str) -> dict[str, float]:
    n, d = float(n), float(d)
    cholesky = (iters + 1) * n**3 / 3
    gram = n * n * d + iters * 3 * outputs * n**3 + cholesky
    if normalize == "max":
        gram += iters * 4 * outputs * n * n * d
    update = 2 * outputs * n * n * d + (outputs + 2) * n * d * d
    feature = (iters + 1) * n * n * d + cholesky + iters * update
    streamed = (iters + 1) * SOLVER_PASSES * n * n * d + iters * (update + n * n * d)
    return {"gram": gram, "feature": feature, "streamed": streamed}


def _bytes(n: int, d: int, outputs: int, iters: int, size: int) -> dict[str, int]:
    points = 2 * n * d  # centred, and seen through the metric
    return {
        "gram": size * ((4 + (1 + outputs) * iters) * n * n + points),
        "feature": size * (2 * n * n + points + outputs * n * d + 3 * d * d),
        "streamed": _streamed_bytes(n, d, outputs, size, LEAST_TILE, LEAST_RANK),
    }


def streamed_shape(n: int, d: int, outputs: int, size: int, budget: int) -> tuple[int, int, int]:
    """Rows of a tile, rank of the preconditioner, and bytes left over for keeping tiles.

    A tile and the preconditioner grow together from their least sizes while they take no more than
    half of the budget.
    """
    tile, rank = LEAST_TILE, LEAST_RANK
    while (
        tile < MOST_TILE and _streamed_bytes(n, d, outputs, size, 2 * tile, 2 * rank) < budget / 2
    ):
        tile, rank = 2 * tile, 2 * rank
    room = budget - _streamed_bytes(n, d, outputs, size, tile, rank)
    return min(tile, n), min(rank, max(1, n // 2)), max(0, room)


def _streamed_bytes(n: int, d: int, outputs: int, size: int, tile: int, rank: int) -> int:
    """Everything but kept tiles."""
    tile, rank = min(tile, n), min(rank, n)
    points = 3 * n * d  # centred, through the metric, gradients
    metrics = 4 * d * d
    preconditioner = 4 * n * rank + 6 * rank * rank
    vectors = 8 * n * (outputs + 1) * 2  # in double precision
    median = round(0.05 * n * n / 2)  # distances gathered around it, while the tiles fill up
    numbers = points + metrics + preconditioner + vectors + median + 10 * tile * tile
    return size * numbers + WORKSPACE


def _choose(operations: dict, needed: dict, budget: int) -> tuple[str, str]:
    for regime in sorted(("gram", "feature"), key=operations.get):
        if needed[regime] <= budget:
            return regime, (
                f"{short(float(operations[regime]), 2)} operations, the fewest of what fits "
                f"{count(budget)} bytes"
            )
    least = min(needed["gram"], needed["feature"])
    return (
        "streamed",
        f"n x n matrices need {count(least)} bytes, over the budget of {count(budget)}",
    )
