"""How a written answer is scored: the built-in ways, and functions of one's own by name."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from .rows import TaskError


def exact_match(written: str, answer: Any) -> float:
    """1 where the normalised text is a normalised answer."""
    return float(normalized(written) in [normalized(a) for a in _accepted(answer)])


def contains(written: str, answer: Any) -> float:
    """1 where a normalised answer stands in the normalised text, not inside a longer word."""
    text = normalized(written)
    patterns = (rf"(?<!\w){re.escape(normalized(a))}(?!\w)" for a in _accepted(answer))
    return float(any(re.search(pattern, text) for pattern in patterns))


def normalized(text: str) -> str:
    """Unicode compatibility form, lower case, single spaces, no ``.,;:!?`` at the end."""
    text = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return text.rstrip(".,;:!?").rstrip()


def named_scorer(scoring: Any) -> Callable[[str, Any], float]:
    """The function that a task's ``scoring`` stands for.

    Raises:
        TaskError: neither a known name nor a function that can be imported.
    """
    known = {"exact": exact_match, "contains": contains}
    if callable(scoring):
        return scoring
    if isinstance(scoring, str) and scoring in known:
        return known[scoring]
    module, colon, name = str(scoring).partition(":")
    if not colon or not module or not name:
        raise TaskError(
            f"scoring must be one of {tuple(known)}, a function, or 'package.module:function', "
            f"came {scoring!r}"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"scoring {scoring!r} cannot be imported: {error}") from error
    if not callable(found):
        raise TaskError(f"scoring {scoring!r} is not a function, it is {type(found).__name__}")
    return found


def _accepted(answer: Any) -> list[str]:
    return answer if isinstance(answer, list) else [answer]
