"""From outside rows (JSON lines, pairs, texts) to checked (content, label, pair) records.

Every problem is collected before anything is raised, so that one pass over a file tells all of it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..support.reading import short
from ..support.rows import RowsError, Unusable

# A piece of text, or chat messages ({"role", "content"}) for the tokenizer's chat template.
Content = str | tuple[dict[str, str], ...]

_FORMS = '{"text", "label"}, {"messages", "label"} or {"prompt", "positive", "negative"}'


class Record(NamedTuple):
    """One example before it becomes part of a set."""

    content: Content
    label: int
    pair: Any  # examples with equal values belong together; None stands alone


class ContrastSetError(RowsError):
    """A contrast set cannot be made, or split, from what was given.

    Attributes:
        problems: ``(where, reason)`` for every malformed row, all of them (the message lists
            the first 20); empty when the set as a whole is at fault.
    """


def collect(source: str, rows: Iterable[tuple[str, Any]]) -> list[Record]:
    """`parse_all` as a list."""
    return list(parse_all(source, rows))


def parse_all(source: str, rows: Iterable[tuple[str, Any]]) -> Iterator[Record]:
    """Parse ``(where, row)`` items; at the end raise one `ContrastSetError` for malformed rows.

    A row that is an exception stands for one that could not be read at all. After the first
    malformed row nothing more is given, only looked at.
    """
    problems: list[tuple[str, str]] = []
    count = 0
    for where, row in rows:
        count += 1
        try:
            if isinstance(row, Exception):
                raise row
            parsed = _parse(row, where)
        except Unusable as reason:
            problems.append((where, str(reason)))
            continue
        if not problems:
            yield from parsed
    if problems:
        raise ContrastSetError(f"{source}: {len(problems)} of {count} rows malformed", problems)


class PairNumbers:
    """Numbers from 0 for pairs in the order they are met; ``None`` for examples that stand alone.

    Only pairs that a file names itself are remembered: the sides of one row follow each other.
    """

    def __init__(self) -> None:
        self._given: dict[Any, int] = {}
        self._row: tuple[Any, int] = (None, -1)
        self._next = 0

    def __call__(self, group: Any) -> int | None:
        if group is None:
            return None
        if group == self._row[0]:
            return self._row[1]
        if group in self._given:
            return self._given[group]
        number, self._next = self._next, self._next + 1
        if group[0] == "given":
            self._given[group] = number
        else:
            self._row = (group, number)
        return number


def text_row(text: Any, label: Any, pair: Any = None) -> dict[str, Any]:
    return {"text": text, "label": label, "pair": pair}


def pair_row(pair: Any) -> Any:
    """A pair given as a tuple or mapping, as the mapping that `collect` reads."""
    if isinstance(pair, Mapping):
        return pair
    if isinstance(pair, Sequence) and not isinstance(pair, str | bytes):
        names = {2: ("positive", "negative"), 3: ("prompt", "positive", "negative")}.get(len(pair))
        if names is not None:
            return {"prompt": None} | dict(zip(names, pair))
    return Unusable(
        "expected (positive, negative), (prompt, positive, negative) or a mapping with the keys "
        f"prompt, positive and negative, came {short(pair)}"
    )


def _parse(row: Any, where: str) -> list[Record]:
    if not isinstance(row, Mapping):
        raise Unusable(f"expected an object, came {short(row)}")
    if "messages" in row and "text" not in row:
        row = {"text" if name == "messages" else name: value for name, value in row.items()}
    paired = {"prompt", "positive", "negative"} & row.keys()
    single = {"text", "label"} & row.keys()
    if bool(paired) == bool(single):
        came = ", ".join(map(repr, row)) or "(none)"
        raise Unusable(f"expected {_FORMS}, came the keys {came}")
    wanted = ("prompt", "positive", "negative") if paired else ("text", "label")
    missing = [name for name in wanted if name not in row]
    if missing:
        raise Unusable(f"{' and '.join(map(repr, missing))} missing")
    if single:
        pair = row.get("pair")
        group = None if pair is None else ("given", _integer("pair", pair))
        return [Record(_content("text", row["text"]), _label(row["label"]), group)]
    positive, negative = (_completed(row, side) for side in ("positive", "negative"))
    if positive == negative:
        raise Unusable("positive and negative are the same, so the pair holds no contrast")
    return [Record(positive, 1, ("row", where)), Record(negative, 0, ("row", where))]


def _completed(row: Mapping[str, Any], side: str) -> Content:
    """The prompt followed by one of its two continuations."""
    prompt, continuation = row["prompt"], row[side]
    if prompt is None:
        return _content(side, continuation)
    if not isinstance(continuation, str):
        came = short(continuation)
        raise Unusable(f"{side!r} must be a string where there is a prompt, came {came}")
    continuation = _content(side, continuation)
    if isinstance(prompt, str):
        _encodable("prompt", prompt)
        return prompt + continuation
    return (*_content("prompt", prompt), {"role": "assistant", "content": continuation})


def _content(name: str, value: Any) -> Content:
    if isinstance(value, str):
        if not value.strip():
            raise Unusable(f"{name!r} is empty")
        return _encodable(name, value)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise Unusable(f"{name!r} must be a string or a list of messages, came {short(value)}")
    if not value:
        raise Unusable(f"{name!r} is an empty list of messages")
    return tuple(_message(f"{name}[{i}]", message) for i, message in enumerate(value))


def _message(name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise Unusable(f'{name} must be a message {{"role", "content"}}, came {short(message)}')
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise Unusable(f"{name}[{key!r}] must be a string, came {short(message[key])}")
        _encodable(name, message[key])
    return {"role": message["role"], "content": message["content"]}


def _encodable(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"{name!r} holds a lone surrogate at character {error.start}") from None
    return text


def _label(value: Any) -> int:
    label = _integer("label", value)
    if label not in (0, 1):
        raise Unusable(f"'label' must be 0 or 1, came {label}")
    return label


def _integer(name: str, value: Any) -> int:
    """An integer from Python, NumPy or torch; a boolean counts, a float or string does not."""
    try:
        return operator.index(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        wanted = "0 or 1" if name == "label" else "an integer"
        raise Unusable(f"{name!r} must be {wanted}, came {short(value)}") from None
