"""Warnings that name the user's own line, however deep in the package they come from."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1]) + os.sep


def tell(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` about the nearest caller outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Every warning of the block told once it has ended well, with what it is about in front.

    Where it ends in an error, that alone is told.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for told in caught:
        warnings.warn_explicit(
            f"{subject}: {told.message}", told.category, told.filename, told.lineno
        )
