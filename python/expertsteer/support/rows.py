"""Rows of files: JSON lines one by one, and an error that tells every row that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .reading import InputError

_LISTED = 20


class RowsError(InputError):
    """Something cannot be made of rows, each of ``problems`` at fault; see the kinds of it."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()):
        self.problems = tuple(problems)
        lines = [message, *(f"  {where}: {reason}" for where, reason in self.problems[:_LISTED])]
        if len(self.problems) > _LISTED:
            lines.append(f"  ... and {len(self.problems) - _LISTED} more")
        super().__init__("\n".join(lines))


class Unusable(Exception):
    """The reason why one row cannot be used."""


def json_lines(stream: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """``(line number, row)`` for each line; blank lines are allowed at the end only."""
    blank: list[int] = []
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark is not part of the row
        if not line.strip():
            blank.append(number)
            continue
        yield from ((f"line {n}", Unusable("blank line between rows")) for n in blank)
        blank.clear()
        yield f"line {number}", _decode(line)


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8 text (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return Unusable(f"not valid JSON ({error.msg} at column {error.colno})")
    except ValueError as error:  # a number of more digits than Python reads
        return Unusable(f"not a usable row ({error})")
    except RecursionError:
        return Unusable("not a usable row (JSON nested too deeply)")
