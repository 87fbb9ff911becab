"""What a comparison at equal price found: rows, tests and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..support.numbers import setting
from .statistics import Interval, PairedTest
from .verdict import verdict

UNSTEERED, PROMPT = "unsteered", "prompt before the text"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class ComparisonRow:
    """One method at the settings that validation chose, measured on the test split.

    Attributes:
        name: of the method; kind: ``"none"``, ``"random"``, ``"control"``, ``"own"``,
            ``"expert"``, ``"given"`` (vectors at hand) or ``"prompt"``.
        score: mean over the test items with its interval; values: of every item.
        divergence: from the unsteered model on neutral texts that nothing was chosen on, in the
            unit of the budget; within: whether the settings keep the budget on the texts that they
            were calibrated on.
        prices: further costs by name, as the caller measures them.
        extra_tokens: tokens that a prompt adds to every text.
        layers, strength: chosen settings (a negative strength flips a random direction); prompt:
            the chosen one; validation: its mean score there.
        tried: settings compared on validation; passes: over the neutral texts, for that.
        against: tests by the name of the control.
    """

    name: str
    kind: str
    score: Interval
    values: tuple[float, ...]
    divergence: float
    within: bool = True
    prices: dict[str, float] = field(default_factory=dict)
    extra_tokens: int = 0
    layers: tuple[int, ...] = ()
    strength: float | None = None
    prompt: str | None = None
    validation: float | None = None
    tried: int = 0
    passes: int = 0
    against: dict[str, PairedTest] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Json values."""
        tests = {name: test.to_dict() for name, test in self.against.items()}
        lists = {"values": list(self.values), "layers": list(self.layers)}
        return asdict(self) | lists | {"score": self.score._asdict(), "against": tests}


@dataclass(frozen=True)
class Comparison:
    """All methods at one divergence budget. Made by `compare`.

    Attributes:
        rows: the unsteered model, the mean and the best of the random directions, then every
            method.
        random: each random direction by itself.
        skipped: methods that were not measured, with the reason.
        budget, measure: see `calibrate`; seed: of every random choice; seconds: of the whole.
    """

    rows: tuple[ComparisonRow, ...]
    random: tuple[ComparisonRow, ...]
    skipped: dict[str, str]
    budget: float
    measure: str
    seed: int
    seconds: float

    def row(self, name: str) -> ComparisonRow:
        """The row of a method.

        Raises:
            ValueError: no such row.
        """
        found = next((r for r in self.rows if r.name == name), None)
        if found is None:
            raise ValueError(f"name must be one of {[r.name for r in self.rows]}, came {name!r}")
        return found

    def random_quantiles(self, quantiles: Sequence[float] = QUANTILES) -> dict[float, float]:
        """Of the random directions' test scores."""
        scores = [row.score.mean for row in self.random]
        return {q: float(np.quantile(scores, q)) for q in quantiles}

    def verdict(self, name: str) -> str:
        """In words, whether the method beats the unsteered model and the best random direction;
        where a control is too near its ceiling for the test to tell, that and the figures.

        Raises:
            ValueError: no such row, or one that is itself a control without tests.
        """
        row = self.row(name)
        if not row.against:
            raise ValueError(f"name: {name!r} is what the others are tested against")
        sentence = verdict(row.name, row.against)
        if not row.within:
            sentence += f" It costs more than the budget of {setting(self.budget)}."
        return sentence

    def summary(self) -> dict[str, Any]:
        """Json values of what the table of controls shows: no scores of single items."""
        rows = [row.to_dict() for row in self.rows]
        return {
            "budget": self.budget,
            "measure": self.measure,
            "seed": self.seed,
            "rows": [{k: v for k, v in row.items() if k != "values"} for row in rows],
        }

    def to_dict(self) -> dict[str, Any]:
        """Json values."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "random": [row.to_dict() for row in self.random],
            "random_quantiles": {str(q): v for q, v in self.random_quantiles().items()},
            "verdicts": {r.name: self.verdict(r.name) for r in self.rows if r.against},
            "skipped": self.skipped,
            "budget": self.budget,
            "measure": self.measure,
            "seed": self.seed,
            "seconds": self.seconds,
        }
