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


def stored_strength(
    stored: Any, fingerprint: str, layers: tuple[int, ...], operation: str
) -> float:
    """The strength of the calibration that is of exactly these vectors.

    Raises:
        ValueError: there is none, with what there is.
    """
    way_out = (
        "run calibrate(model, vectors, texts, tokenizer, budget=...) and attach "
        "vectors.with_calibration(result), or give a number"
    )
    if not stored:
        raise ValueError(f"strength='auto': the vectors hold no calibration; {way_out}")
    try:
        for entry in stored:
            if (entry["fingerprint"], entry["operation"]) == (fingerprint, operation):
                strength = float(entry["strength"])
                if not math.isfinite(strength):
                    raise ValueError(f"a strength of {strength}")
                return strength
        known = [(tuple(entry["layers"]), entry["operation"]) for entry in stored]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"strength='auto': metadata['{CALIBRATION_KEY}'] is damaged "
            f"({type(error).__name__}: {error}); {way_out}"
        ) from error
    raise ValueError(
        f"strength='auto': no stored calibration is of these vectors at layers {layers} with "
        f"operation {operation!r}; stored are {known}, of the vectors as they were then; {way_out}"
    )
