"""Folders that appear when they are complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._files import ArtifactError


def require_new(out: str | os.PathLike) -> Path:
    """The path of a folder that does not exist, or is empty; a ``ValueError`` for another."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out {str(out)!r} exists already; name a new folder or remove that one")
    return out


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name on success and goes on failure."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise ArtifactError(f"out {str(out)!r} cannot be written: {error}") from error
    try:
        yield temporary
        # mkdtemp makes private folders; this one is as readable as any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.replace(out)
    except OSError as error:
        raise ArtifactError(f"out {str(out)!r} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
