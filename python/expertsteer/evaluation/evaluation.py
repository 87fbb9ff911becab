"""Everything one evaluation measured: what `expertsteer evaluate` makes and its report shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..pairing.layer_pairs import LayerPairing
from .comparison import Comparison


class CurvePoint(NamedTuple):
    """A method at one strength, at the layers that validation chose for it."""

    strength: float
    divergence: float  # from the unsteered model on neutral text, in the unit of the budget
    score: float  # mean over the test items


@dataclass(frozen=True)
class Answered:
    """One test item with and without steering.

    Attributes:
        prompt: what the model was given; expected: the right answer, where the task has one.
        unsteered, steered: what the model answered or wrote.
        before, after: the item's scores, larger is better.
    """

    prompt: str
    expected: str | None
    unsteered: str
    steered: str
    before: float
    after: float

    @property
    def outcome(self) -> str:
        """``"win"``, ``"loss"`` or ``"tie"`` of steering."""
        if self.after == self.before:
            return "tie"
        return "win" if self.after > self.before else "loss"


@dataclass(frozen=True)
class Evaluation:
    """What steering did, against what, at what price.

    Attributes:
        task: what was measured, in words: the score's name and on how many items of what.
        method: the row of ``comparison`` that the verdict is about.
        comparison: every method and control at one divergence budget.
        curves: by method, strengths rising from 0.
        pairing: information between layers, the chosen pairs, and the effects that were measured.
        examples: test items under ``method``.
        health: of the fit, as `health` gives it in json values; empty where it was not looked at.
        excluded: items and texts that were left out, by reason, with their number.
        settings: models, files, options, seeds, versions and the command; json values.
        outcomes: how many of all test items are a win, a loss and a tie of steering.
        harness: tasks of lm-evaluation-harness without and with steering: rows with ``task``,
            ``metric``, ``filter``, ``items``, ``unsteered`` and ``steered`` (each a value and its
            ``stderr`` or null); json values.
    """

    task: str
    method: str
    comparison: Comparison
    curves: dict[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    pairing: LayerPairing | None = None
    examples: tuple[Answered, ...] = ()
    health: dict[str, Any] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    harness: tuple[dict[str, Any], ...] = ()

    @property
    def verdict(self) -> str:
        """In words, whether the method beats the unsteered model and every random direction."""
        return self.comparison.verdict(self.method)

    def summary(self) -> dict[str, Any]:
        """Json values: the verdict and the table, without the scores of single items."""
        told = {"task": self.task, "method": self.method, "verdict": self.verdict}
        return told | self.comparison.summary()

    def to_dict(self) -> dict[str, Any]:
        """Json values."""
        return {
            "task": self.task,
            "method": self.method,
            "verdict": self.verdict,
            "comparison": self.comparison.to_dict(),
            "curves": {name: [p._asdict() for p in ps] for name, ps in self.curves.items()},
            "pairing": None if self.pairing is None else _pairing(self.pairing),
            "examples": [asdict(e) | {"outcome": e.outcome} for e in self.examples],
            "health": self.health,
            "excluded": self.excluded,
            "settings": self.settings,
            "outcomes": self.outcomes,
            "harness": list(self.harness),
        }


def _pairing(pairing: LayerPairing) -> dict[str, Any]:
    matrix = pairing.matrix
    return {
        "rule": pairing.rule,
        "pairs": [pair._asdict() for pair in pairing],
        "matrix": None if matrix is None else matrix.tolist(),
        "expert_layers": list(pairing.expert_axis),
        "target_layers": list(pairing.target_axis),
        "effects": [list(effect) for effect in pairing.effects],
    }
