"""Numbers and foreign text as a page or a markdown table can show them."""

from __future__ import annotations

import math
import re
from typing import Any

from ..statistics import PairedTest

MINUS, NONE = "\u2212", "\u2013"
# What no text file should hold: half a surrogate pair cannot be encoded, and most control
# characters are not allowed in HTML, escaped or not.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#|!~&$])")


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


def clean(text: Any) -> str:
    """The text with what cannot be written or shown replaced by U+FFFD; lines and tabs stay."""
    return _UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))


def line(text: Any, limit: int = 120) -> str:
    """A name in one line of at most ``limit`` characters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def excerpt(text: Any, limit: int) -> str:
    """Long text with its middle left out: a prompt's question stands at its end."""
    text = clean(text)
    if len(text) <= limit:
        return text
    head = limit // 3
    tail = limit - head
    left_out = len(text) - limit
    return f"{text[:head]}\n[… {left_out:,} characters left out …]\n{text[-tail:]}"


def markdown(text: Any) -> str:
    """A name as one cell of a markdown table."""
    return _MARKDOWN.sub(r"\\\1", line(text))


def finite(value: Any) -> Any:
    """Json values with ``None`` for NaN and infinity, which json does not know."""
    if isinstance(value, dict):
        return {clean(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return re.sub(r"[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value
