"""Contrast sets larger than memory: read twice, never held.

The first reading counts and checks every row and takes the set's digest; the next ones hand out
the examples, a part at a time. That is why a source that can be read only once is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..support.paths import local_path
from .contrast_set import ContrastSet
from .examples import Digest, Example
from .rows import ContrastSetError, PairNumbers, parse_all
from .tables import NamedRows, checked_columns, checked_dataset, dataset_rows, file_rows


@dataclass(frozen=True)
class Summary:
    """What one reading of all examples tells.

    Attributes:
        examples: how many; positive: how many of them have label 1.
        digest: `ContrastSet.digest`.
    """

    examples: int
    positive: int
    digest: str


@runtime_checkable
class Source(Protocol):
    """Examples that can be read again and again, and what one reading told of them."""

    name: str

    def __iter__(self) -> Iterator[Example]: ...

    def summary(self) -> Summary: ...

    def told(self, summary: Summary) -> None: ...


class ContrastStream:
    """The examples of a file or data set, read anew by every iteration.

    Makes the same examples as `ContrastSet.from_file` and `ContrastSet.from_dataset`, and takes
    memory for some rows only (and a number per pair where the file names pairs itself).

    Raises:
        ContrastSetError: while reading: malformed rows, each with its place; a file that changed
            between two readings.
    """

    def __init__(self, name: str, rows: Callable[[], NamedRows], path: Path | None = None):
        self.name, self._rows, self._path = name, rows, path
        self._first: tuple[Any, Summary] | None = None

    @classmethod
    def from_file(
        cls, path: str | os.PathLike, columns: Mapping[str, str] | None = None
    ) -> ContrastStream:
        """See `ContrastSet.from_file`; nothing is read yet."""
        path, columns = local_path(path), checked_columns(columns)
        return cls(str(path), lambda: file_rows(path, columns), path)

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None
    ) -> ContrastStream:
        """See `ContrastSet.from_dataset`; nothing is read yet."""
        columns = checked_columns(columns)
        dataset = checked_dataset(dataset)
        return cls("dataset", lambda: dataset_rows(dataset, columns))

    def __iter__(self) -> Iterator[Example]:
        state = self._state()
        if self._first is not None and state != self._first[0]:
            raise ContrastSetError(f"{self.name} changed since it was first read; start again")
        numbers = PairNumbers()
        for text, label, group in parse_all(self.name, self._rows()):
            yield Example(text, label, numbers(group))

    def read(self) -> ContrastSet:
        """All examples in memory."""
        examples = tuple(self)
        try:
            return ContrastSet(examples)
        except ContrastSetError as error:
            raise ContrastSetError(f"{self.name}: {error}") from None

    def summary(self) -> Summary:
        """Read everything once, or remember what that told.

        Raises:
            ContrastSetError: malformed rows, no example, or a single label.
        """
        if self._first is None:
            state, found = self._state(), summarised(self)
            if not 0 < found.positive < found.examples:
                came = "none" if not found.examples else f"all {found.examples} with one label"
                raise ContrastSetError(
                    f"{self.name}: a contrast set needs examples of both labels, 0 and 1; came "
                    f"{came}; add examples of the other label"
                )
            self._first = state, found
        return self._first[1]

    def require_file(self) -> None:
        """Read the first row: whether there is a file of a kind that can be read."""
        next(self._rows(), None)

    def told(self, summary: Summary) -> None:
        """Take over what another process read."""
        self._first = self._state(), summary

    def _state(self) -> Any:
        if self._path is None or not self._path.is_file():
            return None
        status = self._path.stat()
        return status.st_size, status.st_mtime_ns


class InMemory:
    """Examples at hand with the face of a stream; a subset may hold a single label."""

    def __init__(self, name: str, read: Callable[[], Iterator[Example]]):
        self.name, self._read = name, read
        self._summary: Summary | None = None

    def __iter__(self) -> Iterator[Example]:
        return self._read()

    def summary(self) -> Summary:
        self._summary = self._summary or summarised(self)
        return self._summary

    def told(self, summary: Summary) -> None:
        self._summary = summary


def summarised(examples: Iterable[Example]) -> Summary:
    digest, count, positive = Digest(), 0, 0
    for example in examples:
        digest.add(example)
        count, positive = count + 1, positive + example.label
    return Summary(count, positive, str(digest))


def parts(
    examples: Iterable[Example], size: int, wanted: Collection[int]
) -> Iterator[tuple[int, list[Example]]]:
    """The wanted ones of consecutive parts of ``size`` examples, with their indices."""
    rest, last = iter(examples), max(wanted, default=-1)
    for index in range(last + 1):
        if index in wanted:
            yield index, list(islice(rest, size))
        else:
            next(islice(rest, size, size), None)
