"""What every method is tested against: random directions, one by one and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from ..states.states import Captured
from ..vectors.vectors import SteeringVectors
from .comparison import ComparisonRow
from .methods import random_directions, random_like
from .session import Job
from .statistics import bootstrap_interval, corrected, paired_test


def random_jobs(
    target: Captured | None,
    vectors: dict[str, SteeringVectors],
    count: int,
    seed: int,
    settings: int,
) -> list[Job]:
    """Every direction may flip its sign."""

    def drawn(i: int) -> list[SteeringVectors]:
        one = _drawn(target, vectors, 1000 * seed + i)
        return [one, -one]

    return [
        Job(f"random direction {i}", "random", partial(drawn, i), settings, needed=i == 0)
        for i in range(count)
    ]


def _drawn(
    target: Captured | None, vectors: dict[str, SteeringVectors], seed: int
) -> SteeringVectors:
    if target is not None:
        return random_directions(target, seed)
    widest = max(vectors.values(), key=lambda one: len(one.layers))
    return random_like(widest, seed)


def score_of(row: ComparisonRow) -> float:
    return row.score.mean


def summary(tried: list[ComparisonRow]) -> list[ComparisonRow]:
    """Random directions together: their mean over every item, and the best on the test split."""
    rows = [row.values for row in tried]
    values = torch.tensor(rows, dtype=torch.float64, device="cpu").mean(dim=0)
    count = len(tried)

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / count

    average = ComparisonRow(
        f"random directions, mean of {count}",
        "random",
        bootstrap_interval(values),
        tuple(values.tolist()),
        mean([row.divergence for row in tried]),
        prices={n: mean([row.prices[n] for row in tried]) for n in tried[0].prices},
        validation=mean([row.validation for row in tried]),
        tried=sum(row.tried for row in tried),
        passes=sum(row.passes for row in tried),
    )
    best = max(tried, key=score_of)
    return [average, replace(best, name=f"random directions, best of {count}")]


def tested(
    rows: list[ComparisonRow], unsteered: ComparisonRow, best: ComparisonRow, seed: int
) -> list[ComparisonRow]:
    controls = (unsteered, best)
    tests = {
        (row.name, control.name): paired_test(row.values, control.values, seed=seed)
        for row in rows
        for control in controls
    }
    tests = corrected(tests)
    return [
        replace(row, against={c.name: tests[row.name, c.name] for c in controls}) for row in rows
    ]
