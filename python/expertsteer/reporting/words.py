"""Foreign text as a page or a markdown table can show it; numbers are `_numbers`."""

from __future__ import annotations

import math
import re
from typing import Any

from ..support.numbers import count
from ..support.text import clean, line, markdown

__all__ = ["clean", "excerpt", "finite", "line", "markdown"]


def excerpt(text: Any, limit: int) -> str:
    """Long text with its middle left out: a prompt's question stands at its end."""
    text = clean(text)
    if len(text) <= limit:
        return text
    head = limit // 3
    tail = limit - head
    left_out = len(text) - limit
    return f"{text[:head]}\n[… {count(left_out)} characters left out …]\n{text[-tail:]}"


def finite(value: Any) -> Any:
    """Json values with ``None`` for NaN and infinity, which json does not know."""
    if isinstance(value, dict):
        return {clean(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return re.sub(r"[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value
