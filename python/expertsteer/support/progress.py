"""Progress bars that stay silent for anything shorter than two seconds, and when told so.

Every bar of the package is made here. None is shown inside of ``with bars(False)``, below a
function that was called with ``progress=False`` and wears `quietable`, or where the environment
variable ``TQDM_DISABLE`` says so.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_SHOWN: ContextVar[bool] = ContextVar("progress bars are shown", default=True)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Whether bars are shown inside; not where something around it hides them."""
    token = _SHOWN.set(_SHOWN.get() and shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def shown(enabled: bool = True) -> bool:
    """Whether a bar that its maker wants is shown here."""
    told = os.environ.get("TQDM_DISABLE", "").strip().lower()
    return enabled and _SHOWN.get() and told in ("", "0", "false")


def quietable(function: Callable[..., T]) -> Callable[..., T]:
    """What ``progress=False`` (the argument, else a method's attribute) says holds for every bar of
    whatever the function calls."""
    found = inspect.signature(function).parameters.get("progress")

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> T:
        default = found.default if found else getattr(arguments[0], "progress", True)
        with bars(bool(options.get("progress", default))):
            return function(*arguments, **options)

    return call


def bar(
    total: int | None, description: str, enabled: bool = True, unit: str = "it", delay: float = 2
) -> tqdm:
    """A bar on stderr that appears after ``delay`` seconds, to be updated by hand."""
    options = {"delay": delay, "leave": False, "disable": not shown(enabled)}
    return tqdm(total=total, desc=description, unit=unit, **options)


def progress(items: Iterable[T], description: str, enabled: bool = True) -> Iterable[T]:
    """Iterate with a bar on stderr that appears after two seconds."""
    return tqdm(items, desc=description, delay=2, leave=False, disable=not shown(enabled))


def note(text: str, enabled: bool = True) -> None:
    """A line on stderr, above the bars, where bars are shown."""
    if shown(enabled):
        tqdm.write(text, file=sys.stderr)


class Ticker:
    """A bar for work that is done in many places: each calls it with the count it has done."""

    def __init__(self, total: int, description: str):
        self._bar = bar(total, description)

    def __call__(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._bar = None
