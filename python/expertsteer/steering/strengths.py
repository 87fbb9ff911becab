"""Which strength is meant, and what is told where it is likely to be another one than wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..support.arguments import finite_number
from ..support.numbers import short, unit
from ..support.telling import tell
from ..vectors.calibration import why_not_stored
from ..vectors.metadata import CALIBRATION_KEY, is_fitted
from ..vectors.vectors import SteeringVectors

EXCESS = 4.0  # times the calibrated strength; divergences grow as the square of a small one


def resolved_strength(
    strength: Any, experts: Mapping[Any, SteeringVectors], operation: str, looks: bool = True
) -> float:
    """A finite number: as given, or that of the calibration which the vectors carry.

    Args:
        strength: a number; ``"auto"``, the calibrated one; ``None``, the calibrated one where there
            is one, else 1.
        looks: whether a strength far beyond the calibrated one is told; sweeps do without.

    Raises:
        ValueError: a strength that is not finite or another word; ``"auto"`` for several vectors,
            or without a calibration of exactly these vectors.

    Warns:
        UserWarning: fitted vectors without a calibration at a strength that nobody gave; one far
            beyond the calibrated.
    """
    if strength is None:
        return _default(experts, operation)
    if isinstance(strength, str):
        if strength != "auto":
            raise ValueError(f"strength must be a number, 'auto' or None, came {strength!r}")
        if len(experts) > 1:
            raise ValueError(
                f"strength='auto' needs one SteeringVectors, came {len(experts)}, whose strengths "
                "were calibrated one by one; calibrate their sum, or give a number"
            )
        return next(iter(experts.values())).calibrated_strength(operation)
    value = finite_number("strength", strength)
    if looks and operation in ("add", "add_keep_norm"):
        for vectors in experts.values():
            _tell_excess(value, vectors, operation)
    return value


def _default(experts: Mapping[Any, SteeringVectors], operation: str) -> float:
    if len(experts) == 1:
        vectors = next(iter(experts.values()))
        found = vectors.calibration(operation)
        if found is not None:
            return found["strength"]
        stored = vectors.metadata.get(CALIBRATION_KEY)
        reason = why_not_stored(stored, vectors.layers, operation)
    else:
        reason = "there are several vectors, which are calibrated one by one; give a number"
    fitted = [vectors for vectors in experts.values() if is_fitted(vectors.metadata)]
    if fitted:
        tell(
            f"strength was not given and is 1.0, which adds {_added(fitted[0])}: this may cost "
            f"nothing or all of the text. {reason[0].upper()}{reason[1:]}"
        )
    return 1.0


def _added(vectors: SteeringVectors) -> str:
    lengths = {i: float(vectors.displacement(i).double().norm()) for i in vectors.layers}
    return ", ".join(f"{short(length)} at layer {i}" for i, length in lengths.items())


def _tell_excess(strength: float, vectors: SteeringVectors, operation: str) -> None:
    found = vectors.calibration(operation)
    if found is None or not abs(strength) > EXCESS * found["strength"] > 0:
        return
    below = [p for p in found.get("curve", ()) if p[0] <= abs(strength) and p[1] is not None]
    measure = unit(found["measure"])
    worst = f"; at {short(below[-1][0])} it cost {short(below[-1][1])}" if below else ""
    tell(
        f"strength {short(strength)} is {short(abs(strength) / found['strength'])} times the "
        f"calibrated {short(found['strength'])}, which costs {short(found['divergence'])} "
        f"{measure}{worst}: texts are likely to fall apart. Leave strength out, or give one near "
        "the calibrated"
    )
