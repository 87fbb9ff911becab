"""The strength at a price: what `calibrate` found, and where vectors keep it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .metadata import CALIBRATION_KEY


@dataclass(frozen=True)
class Calibration:
    """The largest strength found whose divergence keeps within the budget.

    Attributes:
        strength: it was measured itself, and so was every point of ``curve``.
        divergence: at that strength: nats per token, or a ratio of perplexities.
        budget, measure: as asked for; operation: what was calibrated.
        layers: the steered layers.
        curve: ``(strength, divergence)``, strengths rising; infinite where outputs were not finite.
        next_strength: the next larger measured strength, over the budget; ``None`` where no
            measured strength exceeds it.
        monotonic: whether the measured divergence rises up to ``next_strength`` and stays above
            the budget beyond.
        passes: how often all texts went through the model, each strength counted for itself;
            sweeps: the same when the strengths of one batch count once.
        texts, tokens: what was measured on; truncated, excluded: texts cut at the end of the
            context, and texts left out since they have too few tokens.
        warnings: what else should be known, in words.
        fingerprint: of the vectors at these layers.
    """

    strength: float
    divergence: float
    budget: float
    measure: str
    operation: str
    layers: tuple[int, ...]
    curve: tuple[tuple[float, float], ...]
    next_strength: float | None
    monotonic: bool
    passes: int
    sweeps: int
    texts: int
    tokens: int
    truncated: int
    excluded: int
    warnings: tuple[str, ...]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Json values; an infinite divergence is null."""
        curve = [[s, d if math.isfinite(d) else None] for s, d in self.curve]
        lists = {"layers": list(self.layers), "curve": curve, "warnings": list(self.warnings)}
        return asdict(self) | lists


_WAY_OUT = (
    "run calibrate(model, vectors, tokenizer=tokenizer, budget=...) and attach "
    "vectors.with_calibration(result), or give a number"
)


def stored_calibration(stored: Any, fingerprint: str, operation: str) -> dict[str, Any] | None:
    """The stored entry that is of exactly these vectors, ``None`` where there is none.

    Raises:
        ValueError: entries that are damaged.
    """
    try:
        for entry in stored or ():
            if (entry["fingerprint"], entry["operation"]) == (fingerprint, operation):
                strength = float(entry["strength"])
                if not math.isfinite(strength):
                    raise ValueError(f"a strength of {strength}")
                return entry | {"strength": strength}
            tuple(entry["layers"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"strength='auto': metadata['{CALIBRATION_KEY}'] is damaged "
            f"({type(error).__name__}: {error}); {_WAY_OUT}"
        ) from error
    return None


def why_not_stored(stored: Any, layers: tuple[int, ...], operation: str) -> str:
    """Why a sound list of entries holds none for vectors at these layers, with the way out."""
    if not stored:
        return f"the vectors hold no calibration; {_WAY_OUT}"
    known = [(tuple(entry["layers"]), entry["operation"]) for entry in stored]
    return (
        f"no stored calibration is of these vectors at layers {layers} with operation "
        f"{operation!r}; stored are {known}, of the vectors as they were then; {_WAY_OUT}"
    )
