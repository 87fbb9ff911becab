"""Arguments of calls, checked."""

from __future__ import annotations

import math
from typing import Any


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        ValueError: something that is no number (text, ``None``, a list), or not finite.
    """
    try:
        number = float("nan") if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
        number = float("nan")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, came {value!r}")
    return number
