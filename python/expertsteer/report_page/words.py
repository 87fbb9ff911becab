"""Foreign text as a page or a markdown table can show it; numbers are `_numbers`."""

from __future__ import annotations

import math
import re
from typing import Any

from .._numbers import count

# What no text file should hold: half a surrogate pair cannot be encoded, and most control
# characters are not allowed in HTML, escaped or not.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#|!~&$])")


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
    return f"{text[:head]}\n[… {count(left_out)} characters left out …]\n{text[-tail:]}"


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
