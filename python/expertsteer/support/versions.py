"""The versions of this package and of what its results depend on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("expertsteer")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+unknown"


def package_versions() -> dict[str, str]:
    """The versions that decide whether a fit can be repeated."""
    return dict(_versions())


@cache  # looking packages up takes longer than a small fit
def _versions() -> dict[str, str]:
    return {"expertsteer": VERSION} | {n: version(n) for n in ("torch", "transformers")}
