"""Numbers and foreign text as a page or a markdown table can show them."""

from __future__ import annotations

import math
import re
from typing import Any

from .._text import clean, line, markdown
from ..statistics import PairedTest

__all__ = ["clean", "excerpt", "finite", "line", "markdown", "number", "p_text", "p_value"]

MINUS, NONE = "\u2212", "\u2013"


def number(value: float | None, signed: bool = False) -> str:
    """About three digits, a real minus sign; a dash for what is missing or not a number."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return ("+" if signed else "") + "∞" if value > 0 else MINUS + "∞"
    size = abs(value)
    sign = "+" if signed else ""
    if 0 < size < 0.001:
        text = f"{value:{sign}.2g}"
    elif size < 10:
        text = f"{value:{sign}.3f}"
    else:
        text = f"{value:{sign}.4g}"
    return text.replace("-", MINUS)


def p_value(test: PairedTest) -> str:
    """Corrected where a correction was made."""
    return p_text(test.p_value if test.adjusted is None else test.adjusted)


def p_text(p: float | None) -> str:
    """Two digits, or that it is tiny."""
    if p is None or math.isnan(p):
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def excerpt(text: Any, limit: int) -> str:
    """Long text with its middle left out: a prompt's question stands at its end."""
    text = clean(text)
    if len(text) <= limit:
        return text
    head = limit // 3
    tail = limit - head
    left_out = len(text) - limit
    return f"{text[:head]}\n[… {left_out:,} characters left out …]\n{text[-tail:]}"


def finite(value: Any) -> Any:
    """Json values with ``None`` for NaN and infinity, which json does not know."""
    if isinstance(value, dict):
        return {clean(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return re.sub(r"[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value
