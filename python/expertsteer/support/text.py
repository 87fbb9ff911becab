"""Text of others (names, metadata, files) where it is shown: in a terminal, in markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

# What no text should hold: half a surrogate pair cannot be encoded, most control characters are
# not allowed in HTML, escaped or not, and a terminal obeys them; the last ones turn text around.
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#|!~&$])")


def clean(text: Any) -> str:
    """The text with what cannot be written or shown replaced by U+FFFD; lines and tabs stay."""
    return UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))


def line(text: Any, limit: int = 120) -> str:
    """A name in one line of at most ``limit`` characters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def markdown(text: Any, limit: int = 120) -> str:
    """A name as one cell of a markdown table, or a sentence in a paragraph of its own."""
    return _MARKDOWN.sub(r"\\\1", line(text, limit))


def markdown_rows(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False
) -> str:
    """A markdown table of cells that are escaped; ``right`` aligns all columns but the first."""
    rule = ["---", *(["---:" if right else "---"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def code(text: Any) -> str:
    """A name between backticks."""
    return f"`{line(text).replace('`', chr(39))}`"


def json_line(text: str) -> str:
    """Json for a terminal: the control characters that json lets stand are escaped, too."""
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda m: f"\\u{ord(m[0]):04x}", text)
