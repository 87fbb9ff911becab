"""Effect against divergence: every method at shares of its calibrated strength."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..support.progress import progress as shown
from .comparison import UNSTEERED, Comparison, ComparisonRow
from .equal_price import Chosen, EqualPrice
from .evaluation import CurvePoint

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def strength_curves(
    equal_price: EqualPrice,
    comparison: Comparison,
    names: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    progress: bool = True,
) -> dict[str, tuple[CurvePoint, ...]]:
    """By row, its divergence on the reported neutral texts and its score on the test items.

    Args:
        names: of the rows, by default all that steer at one setting.
        fractions: of the calibrated strength, 0 and 1 among them; what the comparison measured
            at these is taken from it. A strength at which the outputs are not finite is left out.
    """
    rows = [row for row in comparison.rows if row.name in equal_price.chosen]
    rows = [row for row in rows if names is None or row.name in names]
    unsteered = comparison.row(UNSTEERED)
    return {
        row.name: tuple(
            _points(equal_price, equal_price.chosen[row.name], row, unsteered, fractions)
        )
        for row in shown(rows, "strength curves", progress)
    }


def _points(
    equal_price: EqualPrice,
    chosen: Chosen,
    row: ComparisonRow,
    unsteered: ComparisonRow,
    fractions: Sequence[float],
):
    with equal_price.attached(chosen.vectors, strength=0.0, mode="slot") as steering:
        steering.set(strength=1.0)  # of which every row takes its share
        steering.watch = False  # outputs that are not finite cost more than anything
        for fraction in sorted(fractions):
            strength = fraction * chosen.strength
            if fraction in (0.0, 1.0):
                known = row if fraction else unsteered
                yield CurvePoint(strength, known.divergence, known.score.mean)
                continue
            (nats,) = equal_price.reporting(steering, 0, [strength])
            steering.set_rows(None)
            steering.set(strength=strength)
            if math.isfinite(divergence := equal_price.shown(nats)):
                yield CurvePoint(strength, divergence, equal_price.rank("test")[0])
            steering.set(strength=1.0)
