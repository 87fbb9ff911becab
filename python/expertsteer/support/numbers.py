"""Numbers as tables, cards, pages and messages show them. Nothing else formats them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

MINUS, NONE = "\u2212", "\u2013"
_LEADING_ZERO = re.compile(r"(?<![\d.])0(?=\.\d)")


def number(value: float | None, signed: bool = False) -> str:
    """About three digits, a real minus sign; a dash for what is missing or not a number."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return ("+" if signed else "") + "∞" if value > 0 else MINUS + "∞"
    size = abs(value)
    sign = "+" if signed else ""
    if 0 < size < 0.01:
        text = f"{value:{sign}.2g}"
    elif size < 10:
        text = f"{value:{sign}.3f}"
    else:
        text = f"{value:{sign}.4g}"
    return text.replace("-", MINUS)


def signed_number(value: float | None) -> str:
    """A difference as `number` shows it, its sign in front."""
    return number(value, signed=True)


def fixed(value: float | None, places: int = 2, *, bare: bool = False, signed: bool = False) -> str:
    """So many decimal places, in plain characters for a terminal; ``-`` for what is missing.

    ``bare`` leaves out the zero before the point, of numbers below one alone: ``.54``, ``10.37``.
    """
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:{'+' if signed else ''}.{places}f}"
    if math.isfinite(value) and float(text) == 0:
        text = text.lstrip("-")
    return _LEADING_ZERO.sub("", text) if bare else text


def short(value: Any, digits: int = 4) -> str:
    """A float with so many significant digits, ``-`` for None, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "-" if value is None else str(value)


def signed(value: float) -> str:
    """A difference with three significant digits, its sign in front."""
    return f"{value:+.3g}"


def setting(value: float | None) -> str:
    """A number that somebody chose, with the digits it was given."""
    return "-" if value is None else f"{value:g}"


def rough(value: float) -> str:
    """Two decimal places, or two digits and a power of ten where those would hide it."""
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"


def interval(values: Iterable[float], show: Callable[[float], str] = number) -> str:
    """``0.5 [0.4, 0.6]``, from mean, low and high."""
    mean, low, high = map(show, values)
    return f"{mean} [{low}, {high}]"


def with_error(value: float, error: float | None, show: Callable[[float], str] = number) -> str:
    """``0.5 ± 0.1``, or without what is not known."""
    return show(value) + ("" if error is None else f" ± {show(error)}")


def p_text(p: float | None) -> str:
    """A p-value with two digits, or that it is tiny."""
    if p is None or math.isnan(p):
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def p_value(test: Any) -> str:
    """Of a `PairedTest`, or of its document; corrected where a correction was made."""
    of = test if isinstance(test, dict) else vars(test)
    corrected = of.get("adjusted")
    return p_text(of["p_value"] if corrected is None else corrected)


def equals(p: str) -> str:
    """``= 0.03`` or ``< 0.0001``: a p-value in a sentence."""
    return p if p.startswith("<") else f"= {p}"


def count(number: int) -> str:
    """``12,345``"""
    return f"{number:,}"


def percent(share: float, places: int = 0) -> str:
    """A share of one, in hundredths."""
    return f"{share:.{places}%}"


def seconds(value: float) -> str:
    return f"{value:.0f} s"


def duration(value: float) -> str:
    """Seconds in the unit that a person would say: ``40 s``, ``12 min``, ``1 h 20 min``."""
    if value < 90:
        return seconds(value)
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def unit(measure: str) -> str:
    """What a price of that measure is in."""
    return "nats per token" if measure == "kl" else "perplexity ratio"


def size_text(count: float) -> str:
    """Bytes, in the unit that they have few of: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
