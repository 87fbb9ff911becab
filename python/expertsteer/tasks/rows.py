"""From the rows of a task file to checked items, and which side of the split each belongs to.

Every problem is collected before anything is raised, so that one pass over a file tells all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, BinaryIO

from ..support.paths import local_path
from ..support.reading import reading, short
from ..support.rows import RowsError, Unusable, json_lines

SPLITS = ("validation", "test")


class TaskError(RowsError):
    """A task cannot be made, or measured, from what was given.

    Attributes:
        problems: ``(where, reason)`` for every unusable row, all of them (the message lists the
            first 20); empty when the task as a whole is at fault.
    """


@dataclass(frozen=True)
class Item:
    """One row of a task.

    Attributes:
        where: the row's place in its file.
        prompt: the question or text.
        answer: as the row has it; expected: the same as text, for people.
        choices: continuations to choose from; right: which of them is the answer.
        side: ``"validation"`` or ``"test"`` where the row says so itself.
    """

    where: str
    prompt: str
    answer: Any = None
    expected: str | None = None
    choices: tuple[str, ...] = ()
    right: int | None = None
    side: str | None = None


Parse = Callable[[str, Mapping[str, Any]], Item]


def items_of_file(path: str | os.PathLike, parse: Parse) -> tuple[Item, ...]:
    """The items of a file of one JSON object a line.

    Raises:
        TaskError: no such file, an empty one, or unusable rows, all of them by line.
    """
    with _opened(path, "a JSON-lines file") as stream:
        return items_of_rows(str(path), json_lines(stream), parse)


def texts_of_file(path: str | os.PathLike) -> list[str]:
    """The texts of a UTF-8 file of one a line, without the blank ones.

    Raises:
        TaskError: no such file, one that cannot be read as text, or without any.
    """
    with _opened(path, "a text file") as stream:
        try:
            content = StringIO(stream.read().decode("utf-8"), newline=None)
        except UnicodeDecodeError as error:
            raise TaskError(f"{path} is no UTF-8 text: {error}; save it as UTF-8") from error
    texts = [line.rstrip("\n") for line in content if line.strip()]
    if not texts:
        raise TaskError(f"{path} holds no text; give one text a line")
    return texts


@contextmanager
def _opened(path: str | os.PathLike, kind: str) -> Iterator[BinaryIO]:
    try:
        path = local_path(path, "task")
    except ValueError as error:
        raise TaskError(f"task must name {kind}, came {path!r}: {error}") from error
    if not path.is_file():
        raise TaskError(f"task must name {kind}, there is none at {path}")
    what = kind.removeprefix("a ")
    with reading(path, what, error_type=TaskError), path.open("rb") as stream:
        yield stream


def items_of_rows(source: str, rows: Iterable[tuple[str, Any]], parse: Parse) -> tuple[Item, ...]:
    """The items of ``(where, row)``; a row that is an exception could not be read at all."""
    items, problems = [], []
    for where, row in rows:
        try:
            if isinstance(row, Exception):
                raise Unusable(str(row))
            if not isinstance(row, Mapping):
                raise Unusable(f"expected an object, came {short(row)}")
            items.append(parse(where, row))
        except Unusable as reason:
            problems.append((where, str(reason)))
    if problems:
        total = len(items) + len(problems)
        raise TaskError(f"{source}: {len(problems)} of {total} rows cannot be used", problems)
    if not items:
        raise TaskError(f"{source} holds no rows; give one JSON object a line")
    return tuple(items)


def text(row: Mapping[str, Any], *names: str) -> str:
    """The one of several names that the row has, a text that is not blank."""
    present = [name for name in names if row.get(name) is not None]
    if len(present) != 1:
        wanted = " or ".join(map(repr, names))
        raise Unusable(f"expected one of {wanted}, came {', '.join(present) or 'none of them'}")
    value = row[present[0]]
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"{present[0]!r} must be a text that is not blank, came {short(value)}")
    return value


def answer(row: Mapping[str, Any]) -> Any:
    if row.get("answer") is None:
        raise Unusable("'answer' missing")
    return row["answer"]


def side(row: Mapping[str, Any]) -> str | None:
    """The split a row asks for itself."""
    value = row.get("split")
    if value is not None and value not in SPLITS:
        raise Unusable(f"'split' must be one of {SPLITS} where it is given, came {short(value)}")
    return value


def split_items(
    source: str, items: Sequence[Item], validation: float, seed: int
) -> dict[str, list[Item]]:
    """Items by side, in their order; equal prompts are always on one side.

    Rows that name their side decide for themselves. Among the others whole groups of equal prompts
    go to validation, in an order drawn from the seed and the prompts alone, until the share is
    reached: neither the order of the rows nor the model changes it.

    Raises:
        TaskError: equal prompts that name both sides, some rows with and some without a side, a
            share that leaves a side empty.
    """
    if not 0 < validation < 1:
        raise TaskError(f"validation must be a share between 0 and 1, came {validation}")
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(" ".join(item.prompt.split()), []).append(item)
    told = [item for item in items if item.side is not None]
    sides = _told(source, groups) if told else _drawn(groups, validation * len(items), seed)
    if told and len(told) < len(items):
        missing = next(item.where for item in items if item.side is None)
        raise TaskError(f"{source}: {missing} has no 'split' while others do; give all or none")
    parts: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for item in items:
        parts[sides[" ".join(item.prompt.split())]].append(item)
    for name, part in parts.items():
        if len(part) < 2:
            raise TaskError(
                f"{source}: {len(part)} of {len(items)} rows are on the {name} side, at least 2 "
                "are needed; give more different prompts, or another validation share"
            )
    return parts


def _told(source: str, groups: Mapping[str, list[Item]]) -> dict[str, str]:
    for group in groups.values():
        if len({item.side for item in group}) > 1:
            places = ", ".join(f"{item.where} ({item.side})" for item in group)
            raise TaskError(
                f"{source}: {places} ask the same and name different splits; what was chosen on "
                "would be reported on"
            )
    return {prompt: group[0].side for prompt, group in groups.items()}


def _drawn(groups: Mapping[str, list[Item]], wanted: float, seed: int) -> dict[str, str]:
    def place(prompt: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{prompt}".encode(), digest_size=16).digest()

    sides, count = {}, 0
    for prompt in sorted(groups, key=place):
        sides[prompt] = "validation" if count + len(groups[prompt]) / 2 <= wanted else "test"
        count += len(groups[prompt]) if sides[prompt] == "validation" else 0
    return sides
