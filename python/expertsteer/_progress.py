"""Progress bars that stay silent for anything shorter than two seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, enabled: bool = True) -> Iterable[Item]:
    """Iterate with a bar on stderr that appears after two seconds."""
    return tqdm(items, desc=description, delay=2, leave=False, disable=not enabled)
