"""Prompts and their answers, from files, pairs or mappings, checked row by row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..support.paths import local_path
from ..support.reading import reading, short
from ..support.rows import RowsError, Unusable, json_lines

_FORM = '{"prompt", "answer"}, the answer a text or a list of texts that are all right'


class ExamplesError(RowsError):
    """Examples cannot be made of what was given.

    Attributes:
        problems: ``(where, reason)`` for every unusable row, all of them (the message lists the
            first 20); empty when the whole is at fault.
    """


@dataclass(frozen=True)
class Answered:
    """A prompt with its answers, any of which is right.

    Attributes:
        prompt: ends where the answer begins; answers: stand right behind it, with the space that
            it takes.
    """

    prompt: str
    answers: tuple[str, ...]


def answered_examples(examples: Any) -> tuple[Answered, ...]:
    """Examples from a path of a JSON-lines file, from (prompt, answer) pairs, or from mappings.

    Raises:
        ExamplesError: no such file, no row, rows that cannot be used, all of them; one prompt with
            different answers in two rows.
    """
    if isinstance(examples, (str, os.PathLike)):
        path = local_path(examples, "examples")
        advice = f"rows must be {_FORM}"
        with (
            reading(path, "JSON-lines file", advice, ExamplesError),
            path.open("rb") as stream,
        ):
            return _of_rows(str(path), json_lines(stream))
    if isinstance(examples, Mapping) or not isinstance(examples, Iterable):
        raise ExamplesError(
            f"examples must be a file or a list of (prompt, answer) or {_FORM}, came "
            f"{short(examples)}"
        )
    return _of_rows("examples", ((f"example {i}", row) for i, row in enumerate(examples)))


def _of_rows(source: str, rows: Iterable[tuple[str, Any]]) -> tuple[Answered, ...]:
    found: dict[str, Answered] = {}
    problems: list[tuple[str, str]] = []
    count = 0
    for where, row in rows:
        count += 1
        try:
            one = _parsed(row)
            if found.setdefault(one.prompt, one) != one:
                raise Unusable(
                    f"the prompt {short(one.prompt)} has other answers in an earlier row; give "
                    "all that are right in one"
                )
        except Unusable as reason:
            problems.append((where, str(reason)))
    if problems:
        raise ExamplesError(f"{source}: {len(problems)} of {count} rows unusable", problems)
    if not found:
        raise ExamplesError(f"{source} holds no row; rows are {_FORM}")
    return tuple(found.values())


def _parsed(row: Any) -> Answered:
    if isinstance(row, Unusable):
        raise row
    if isinstance(row, Mapping):
        missing = [name for name in ("prompt", "answer") if name not in row]
        if missing:
            came = ", ".join(map(repr, row)) or "(none)"
            raise Unusable(f"expected {_FORM}, came the keys {came}")
        prompt, answer = row["prompt"], row["answer"]
    elif isinstance(row, Sequence) and not isinstance(row, (str, bytes)) and len(row) == 2:
        prompt, answer = row
    else:
        raise Unusable(f"expected (prompt, answer) or {_FORM}, came {short(row)}")
    answers = [answer] if isinstance(answer, str) else answer
    if not isinstance(prompt, str) or not prompt:
        raise Unusable(f"'prompt' must be a text that is not empty, came {short(prompt)}")
    listed = isinstance(answers, Sequence) and not isinstance(answers, bytes) and len(answers)
    if not listed or not all(isinstance(a, str) and a.strip() for a in answers):
        raise Unusable(
            f"'answer' must be a text, or a list of texts, none of them blank, came {short(answer)}"
        )
    return Answered(prompt, tuple(dict.fromkeys(answers)))
