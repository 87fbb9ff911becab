"""Progress bars that stay silent for anything shorter than two seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, enabled: bool = True) -> Iterable[T]:
    """Iterate with a bar on stderr that appears after two seconds."""
    return tqdm(items, desc=description, delay=2, leave=False, disable=not enabled)


class Ticker:
    """A bar for work that is done in many places: each calls it with the count it has done."""

    def __init__(self, total: int, description: str):
        self._bar = tqdm(total=total, desc=description, delay=2, leave=False)

    def __call__(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._bar = None
