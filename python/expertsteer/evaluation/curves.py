"""Effect against divergence: every method at shares of its calibrated strength."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ..support.numbers import setting
from ..support.progress import progress as shown
from ..support.telling import tell
from .comparison import UNSTEERED, Comparison, ComparisonRow
from .equal_price import Chosen, EqualPrice
from .evaluation import CurvePoint
from .session import Session

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def strength_curves(
    equal_price: EqualPrice,
    comparison: Comparison,
    names: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    progress: bool = True,
    session: Session | None = None,
) -> dict[str, tuple[CurvePoint, ...]]:
    """By row, its divergence on the reported neutral texts and its score on the test items.

    Args:
        names: of the rows, by default all that steer at one setting.
        fractions: of the calibrated strength, 0 and 1 among them; what the comparison measured
            at these is taken from it. A strength at which the outputs are not finite is left out.
        session: of the comparison; its first row's curve is drawn first, others while there is
            time, and what is kept is not measured again.

    Warns:
        UserWarning: curves for which there was no time.
    """
    session = session or Session()
    rows = [row for row in comparison.rows if row.name in equal_price.chosen]
    rows = [row for row in rows if names is None or row.name in names]
    ordered = sorted(rows, key=lambda row: row.name != session.first)
    unsteered, drawn, late = comparison.row(UNSTEERED), {}, []
    for row in shown(ordered, "strength curves", progress):
        known, began = session.kept.get("curve", row.name), time.perf_counter()
        if known is None and not session.allows(session.curve_seconds(), row.name == session.first):
            late.append(row.name)
            continue
        if known is None:
            chosen = equal_price.chosen[row.name]
            known = [list(p) for p in _points(equal_price, chosen, row, unsteered, fractions)]
            session.kept.put("curve", row.name, known, time.perf_counter() - began)
        drawn[row.name] = tuple(CurvePoint(*point) for point in known)
    if late:
        minutes = setting(session.max_minutes)
        tell(f"no strength curve of {', '.join(late)}: max_minutes={minutes} was over")
    return {row.name: drawn[row.name] for row in rows if row.name in drawn}


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
