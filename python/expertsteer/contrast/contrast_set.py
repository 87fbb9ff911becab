"""The contrast set: labelled texts from which a steering direction is learned.

Label 1 marks the behaviour to steer towards, label 0 its opposite. Needs neither torch nor
transformers.
"""

from __future__ import annotations

import math
import operator
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from ..support.paths import local_path
from ..support.rows import json_lines
from .examples import Digest, Example, numbered
from .rows import Content, ContrastSetError, PairNumbers, Record, collect, pair_row, text_row
from .strata import strata
from .tables import NamedRows, checked_columns, checked_dataset, dataset_rows, file_rows, lines_of

__all__ = ["ContrastSet", "ContrastSetError", "Example"]

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, repr=False)
class ContrastSet(Sequence[Example]):
    """An immutable sequence of ``Example``, never empty, with both labels present.

    Only a subset (``take`` or a slice) and an `unlabelled` set may hold a single label, since
    these serve to capture texts; whatever learns from labels checks them again.

    Raises:
        ContrastSetError: no examples, or all of them with one label.
    """

    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        _require_examples(self.examples)
        present = sorted(set(self.labels))
        if present != [0, 1]:
            raise ContrastSetError(
                f"a contrast set needs examples of both labels, 0 and 1; all {len(self)} came "
                f"with label {', '.join(map(str, present))}; add examples of the other label"
            )

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike) -> ContrastSet:
        """Read a UTF-8 file of one JSON object per line.

        Rows are ``{"text", "label"}`` (optionally with an integer ``"pair"``) or ``{"prompt",
        "positive", "negative"}``, as in `from_texts` and `from_pairs`; other keys are ignored.
        Blank lines are allowed at the end only.

        Raises:
            ContrastSetError: no such file, or malformed rows: every one is reported with its
                line number and reason.
        """
        path = local_path(path)
        if not path.is_file():
            raise ContrastSetError(f"path must name a JSON-lines file, there is none at {path}")
        with lines_of(path), path.open("rb") as stream:
            return cls._read(str(path), json_lines(stream))

    @classmethod
    def from_file(
        cls, path: str | os.PathLike, columns: Mapping[str, str] | None = None
    ) -> ContrastSet:
        """Read a jsonl or parquet file, whichever its name says (``.jsonl``, ``.parquet``).

        Rows are those of `from_jsonl`, or ``{"messages", "label"}`` with chat messages. In
        parquet an empty cell stands for a column that the row does not have, and ``prompt`` may
        be left out.

        Args:
            columns: what the file calls them, such as ``{"positive": "chosen", "negative":
                "rejected"}``.

        Raises:
            ContrastSetError: no such file, another kind of file, a column that is not there, or
                malformed rows, each with its place and reason.
        """
        path, columns = local_path(path), checked_columns(columns)
        return cls._read(str(path), file_rows(path, columns))

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[Mapping[str, Any]], columns: Mapping[str, str] | None = None
    ) -> ContrastSet:
        """Read a ``datasets.Dataset``, an ``IterableDataset`` or any rows by name; see `from_file`.

        Raises:
            ContrastSetError: malformed rows, each named by its index (from 0).
        """
        columns = checked_columns(columns)
        return cls._read("dataset", dataset_rows(checked_dataset(dataset), columns))

    @classmethod
    def from_pairs(cls, pairs: Iterable[Any]) -> ContrastSet:
        """Make two examples of each pair: the positive side (label 1), then the negative (0).

        Args:
            pairs: ``(positive, negative)`` or ``(prompt, positive, negative)`` tuples, or mappings
                with those three keys. Strings are joined as they are, without a space. A prompt of
                chat messages makes each side the assistant's answer. Without a prompt the sides
                may be chat messages themselves.

        Raises:
            ContrastSetError: malformed pairs, each named by its index (from 0).
        """
        rows = ((f"pair {i}", pair_row(pair)) for i, pair in enumerate(pairs))
        return cls._from_records(collect("pairs", rows))

    @classmethod
    def from_texts(
        cls, texts: Iterable[Any], labels: Iterable[Any], pairs: Iterable[Any] | None = None
    ) -> ContrastSet:
        """Make one example of each text (a string or chat messages) and label (0 or 1).

        Args:
            pairs: one integer or ``None`` per text; equal integers mark examples that `split`
                keeps together.

        Raises:
            ContrastSetError: lengths that differ, or malformed texts or labels, each named by its
                index (from 0).
        """
        if isinstance(texts, str):
            raise ContrastSetError("texts must be a list of texts, came a single string")
        texts, labels = list(texts), list(labels)
        pairs = [None] * len(texts) if pairs is None else list(pairs)
        if not len(texts) == len(labels) == len(pairs):
            raise ContrastSetError(
                "texts, labels and pairs must have one entry per example, came "
                f"{len(texts)} texts, {len(labels)} labels and {len(pairs)} pairs"
            )
        rows = ((f"text {i}", text_row(*row)) for i, row in enumerate(zip(texts, labels, pairs)))
        return cls._from_records(collect("texts", rows))

    @classmethod
    def unlabelled(cls, texts: Iterable[Any]) -> ContrastSet:
        """Make one example of each text, with label 0, for captures whose labels nobody reads.

        Raises:
            ContrastSetError: no texts, or malformed ones, each named by its index (from 0).
        """
        if isinstance(texts, str):
            raise ContrastSetError("texts must be a list of texts, came a single string")
        rows = ((f"text {i}", text_row(text, 0, None)) for i, text in enumerate(texts))
        return cls._subset([Example(text, label) for text, label, _ in collect("texts", rows)])

    @classmethod
    def _read(cls, source: str, rows: NamedRows) -> ContrastSet:
        records = collect(source, rows)
        try:
            return cls._from_records(records)
        except ContrastSetError as error:
            raise ContrastSetError(f"{source}: {error}") from None

    @classmethod
    def _from_records(cls, records: Sequence[Record]) -> ContrastSet:
        numbers = PairNumbers()
        return cls(tuple(Example(text, label, numbers(group)) for text, label, group in records))

    @classmethod
    def _subset(cls, examples: Sequence[Example]) -> ContrastSet:
        """A set that may hold a single label, hence not through the constructor's check."""
        _require_examples(examples)
        subset = object.__new__(cls)
        object.__setattr__(subset, "examples", tuple(examples))
        return subset

    @property
    def texts(self) -> tuple[Content, ...]:
        return tuple(example.text for example in self.examples)

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(example.label for example in self.examples)

    @property
    def pairs(self) -> tuple[int | None, ...]:
        return tuple(example.pair for example in self.examples)

    @property
    def keys(self) -> tuple[int, ...]:
        """One signed 64-bit fingerprint of text and label per example, equal in every process."""
        return tuple(example.key for example in self.examples)

    @property
    def digest(self) -> str:
        """sha256 over texts, labels and pairs in order, equal for equal sets from any file."""
        digest = Digest()
        for example in self.numbered():
            digest.add(example)
        return str(digest)

    def numbered(self) -> Iterator[Example]:
        """The examples with their pairs numbered from 0 in the order they are met."""
        return numbered(self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ContrastSet: ...
    def __getitem__(self, index: int | slice) -> Example | ContrastSet:
        chosen = self.examples[index]
        return self._subset(chosen) if isinstance(index, slice) else chosen

    def __repr__(self) -> str:
        ones = sum(self.labels)
        return f"ContrastSet({len(self)} examples: {ones} positive, {len(self) - ones} negative)"

    def take(self, rows: Iterable[int]) -> ContrastSet:
        """The examples at the given indices, in the given order; may hold a single label.

        Raises:
            ContrastSetError: no indices, a mask instead of indices, or an index out of range.
        """
        chosen = []
        for row in rows:
            row = row.item() if hasattr(row, "item") else row
            if isinstance(row, bool) or not hasattr(row, "__index__"):
                raise ContrastSetError(f"rows must be integer indices, came {row!r}")
            index = operator.index(row)
            if not -len(self) <= index < len(self):
                raise ContrastSetError(
                    f"row {index} is out of range for {len(self)} examples (0..{len(self) - 1})"
                )
            chosen.append(self.examples[index])
        return self._subset(chosen)

    def split(
        self, train: float = 0.7, validation: float = 0.15, test: float = 0.15, seed: int = 0
    ) -> tuple[ContrastSet, ContrastSet, ContrastSet]:
        """Three disjoint parts that hold both labels in the set's own proportion.

        Both sides of a pair go to the same part. The same set, fractions and seed give the same
        parts in every process. Examples keep their order within a part.

        Args:
            train, validation, test: fractions above 0 that sum to 1.

        Raises:
            ContrastSetError: other fractions, or a part left without one of the labels; the
                message says how many examples are needed.
        """
        fractions = (train, validation, test)
        if min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
            raise ContrastSetError(
                f"train, validation and test must be above 0 and sum to 1, came {fractions}"
            )
        generator = random.Random(seed)
        parts: tuple[list[int], ...] = ([], [], [])
        for units in strata(self.labels, self.pairs):
            generator.shuffle(units)
            start = 0
            for part, count in zip(parts, _apportion(len(units), fractions)):
                part.extend(row for unit in units[start : start + count] for row in unit)
                start += count
        for name, part in zip(_PARTS, parts):
            self._require_both_labels(name, part, fractions)
        first, second, third = (self.take(sorted(part)) for part in parts)
        return first, second, third

    def _require_both_labels(
        self, name: str, rows: Sequence[int], fractions: tuple[float, ...]
    ) -> None:
        missing = {0, 1} - {self.examples[row].label for row in rows}
        if missing:
            enough = math.ceil(1 / min(fractions))
            raise ContrastSetError(
                f"the {name} part would have no example of label "
                f"{' or '.join(map(str, sorted(missing)))}: came {len(self)} examples, "
                f"{sum(self.labels)} of them with label 1; for fractions {fractions}, {enough} "
                f"pairs (or {enough} unpaired examples of each label) are needed to be safe"
            )


def _require_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise ContrastSetError("a contrast set needs at least one example of each label, came none")


def _apportion(count: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to ``count``, by largest remainder."""
    shares = [count * fraction for fraction in fractions]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    return counts
