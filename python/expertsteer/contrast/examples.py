"""One labelled text, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .rows import Content


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
        text: a string, or a tuple of chat messages ``{"role", "content"}``.
        label: 1 for the behaviour to steer towards, 0 for its opposite.
        pair: examples of one set with the same number are two sides of one prompt; ``None``
            stands alone.
    """

    text: Content
    label: int
    pair: int | None = None

    @property
    def key(self) -> int:
        """A signed 64-bit fingerprint of text and label, equal in every process."""
        # JSON tells a string from messages and never depends on hash randomisation.
        document = json.dumps([self.text, self.label], sort_keys=True).encode("ascii")
        digest = hashlib.blake2b(document, digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)


class Digest:
    """A running sha256 over examples in order: texts, labels and pairs."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, example: Example) -> None:
        document = json.dumps([example.text, example.label, example.pair], sort_keys=True)
        self._sha256.update(document.encode("ascii") + b"\n")

    def __str__(self) -> str:
        return self._sha256.hexdigest()


def numbered(examples: Iterable[Example]) -> Iterator[Example]:
    """The examples with their pairs numbered from 0 in the order they are met."""
    numbers: dict[int, int] = {}
    for example in examples:
        pair = example.pair
        yield (
            example
            if pair is None
            else replace(example, pair=numbers.setdefault(pair, len(numbers)))
        )
