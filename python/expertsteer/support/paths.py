"""Paths that people give: the one place where they are taken, by every reader and writer."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(value: str | os.PathLike, argument: str = "path") -> Path:
    """``value`` as a path of this machine, with ``~`` and ``~user`` replaced by the home folder.

    Args:
        argument: what the error calls it.

    Raises:
        ValueError: no path, an empty one, one that no file system can have (NUL, lone
            surrogates), or the home of a user who does not exist.
    """
    try:
        text = os.fsdecode(os.fspath(value))
        os.fsencode(text)
    except TypeError:
        raise ValueError(f"{argument} must be a path, came {type(value).__name__}") from None
    except UnicodeError:
        raise ValueError(f"{argument} is no path that can exist here, came {value!r}") from None
    if not text:
        raise ValueError(f"{argument} must name a file or folder, came an empty text")
    if "\0" in text:
        raise ValueError(f"{argument} must not hold a NUL character, came {text!r}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        first = Path(expanded).parts[0]
        raise ValueError(
            f"{argument} {text!r}: there is no user {first[1:]!r} with a home folder; for a folder "
            "of that name give the whole path"
        )
    return Path(expanded)


def folder_or_id(value: str | os.PathLike, argument: str = "path") -> str:
    """A folder of this machine as `local_path` finds it, or what else it is: the id of a Hub."""
    folder = local_path(value, argument)
    return str(folder if folder.is_dir() else value)
