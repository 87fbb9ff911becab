"""The rows of a comparison one by one: in the order that matters, in the time there is, kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..support.numbers import duration, setting
from ..support.progress import bar, note
from ..vectors.vectors import SteeringVectors
from .comparison import ComparisonRow
from .equal_price import EqualPrice
from .kept import Kept, chosen_of, row_of, row_values

POINTS = 4  # of a strength curve that are measured for it alone
SHARE = 0.2  # of the seconds of a setting that one pass over the neutral texts takes, about


@dataclass(frozen=True)
class Job:
    """A row to measure.

    Attributes:
        name, kind: see `ComparisonRow`.
        variants: makes its vectors, when it is its turn.
        settings: strengths that are searched for, each with a validation score.
        needed: measured whatever time is left.
    """

    name: str
    kind: str
    variants: Callable[[], Sequence[SteeringVectors]]
    settings: int
    needed: bool = False


class Session:
    """How long an evaluation may take, and what it has already.

    Args:
        max_minutes: nothing is begun that would probably end later, except for what an answer
            needs: the unsteered model, one random direction and the first row.
        first: the row to measure first.
        kept: results at hand.
        curves: of how many rows strength curves follow, for the estimate; ``None`` for all.
        progress: show a bar, and say beforehand how long it will take.
    """

    def __init__(
        self,
        max_minutes: float | None = None,
        first: str | None = None,
        kept: Kept | None = None,
        curves: int | None = 0,
        progress: bool = True,
    ):
        if max_minutes is not None and not max_minutes >= 0:
            raise ValueError(f"max_minutes must be a number from 0 on, or None, came {max_minutes}")
        self.first, self.kept, self.progress = first, Kept() if kept is None else kept, progress
        self.curves, self.max_minutes = curves, max_minutes
        self.limit = math.inf if max_minutes is None else 60 * max_minutes
        self.started = time.perf_counter()
        self.pass_seconds = 0.0  # of a score on the test split
        self._settings, self._busy = 0, 0.0  # measured here, and their seconds

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def seconds(self) -> float:
        """Of this call and of the earlier ones whose results it has."""
        return self.elapsed + self.kept.seconds

    def late(self) -> str:
        """Why a row is missing."""
        return f"was not begun within max_minutes={setting(self.max_minutes)}"

    def allows(self, seconds: float, needed: bool = False) -> bool:
        return needed or self.elapsed + seconds <= self.limit

    def row(self, name: str, measure: Callable[[], ComparisonRow]) -> ComparisonRow:
        """A row without a setting of its own, measured unless it is kept."""
        known = self.kept.get("row", name)
        if known is None:
            began = time.perf_counter()
            row = measure()
            self.pass_seconds = self.pass_seconds or time.perf_counter() - began
            known = self.kept.put("row", name, row_values(row, None), time.perf_counter() - began)
        return row_of(known)

    def rows(
        self, jobs: Sequence[Job], equal_price: EqualPrice, subsets: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Job, ComparisonRow | None, str | None]]:
        """Every job with its row, or ``None`` and why there is none."""
        ordered = sorted(jobs, key=lambda job: not job.needed)  # stable
        left = [job for job in ordered if self.kept.get("row", job.name) is None]
        with bar(sum(job.settings for job in ordered), "strengths", self.progress) as told:
            before = 0
            for job in ordered:
                told.set_postfix_str(job.name, refresh=False)
                if job in left and not self.allows(self._expected([job]), job.needed):
                    yield job, None, self.late()
                    continue
                equal_price.on_setting = partial(self._ticked, told, left, len(subsets))
                yield job, *self._measured(job, equal_price, subsets)
                before += job.settings
                told.update(before - told.n)
        equal_price.on_setting = None

    def _measured(
        self, job: Job, equal_price: EqualPrice, subsets: Sequence[Sequence[int]]
    ) -> tuple[ComparisonRow | None, str | None]:
        known = self.kept.get("row", job.name)
        variants, began = job.variants(), time.perf_counter()
        if known is None:
            row = equal_price.row(job.name, job.kind, variants, subsets)
            chosen = equal_price.chosen.get(job.name)
            known = {} if row is None else row_values(row, chosen)
            self.kept.put("row", job.name, known, time.perf_counter() - began)
        elif known:
            equal_price.chosen[job.name] = chosen_of(known, variants)
        if not known:
            return None, "no strength meets the budget at any layers"
        return row_of(known), None

    def _ticked(self, told: Any, left: Sequence[Job], choices: int, seconds: float) -> None:
        told.update()
        self._settings, self._busy = self._settings + 1, self._busy + seconds
        if self._settings == 1:
            self._tell(left, choices)

    def _each(self) -> float:
        """Seconds of a setting."""
        return self._busy / self._settings if self._settings else 0.0

    def _expected(self, jobs: Sequence[Job]) -> float:
        row = self.pass_seconds + SHARE * self._each()
        return sum(job.settings for job in jobs) * self._each() + len(jobs) * row

    def curve_seconds(self) -> float:
        """That a strength curve takes."""
        return POINTS * (self.pass_seconds + SHARE * self._each())

    def _tell(self, left: Sequence[Job], choices: int) -> None:
        drawn = self.curves
        if drawn is None:  # of every method, and of the best random direction
            drawn = 1 + sum(job.kind != "random" for job in left)
        expected = self._expected(left) + drawn * self.curve_seconds()
        text = (
            f"evaluate: {len(left)} rows, each at up to {choices} choices of layers, and {drawn} "
            f"strength curves: about {duration(expected)}"
        )
        if self.kept.seconds:
            text += f" ({len(self.kept)} results are there from before)"
        if self.elapsed + expected > self.limit:
            text += f"; max_minutes={setting(self.max_minutes)} will leave some out"
        note(text, self.progress)
