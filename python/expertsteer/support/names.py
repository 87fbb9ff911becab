"""Names that become files and folders: which of them are safe to join to a path."""

from __future__ import annotations

import os
import unicodedata

# What the file systems in use allow a name to have, in bytes.
LONGEST = 255
# Of Unicode's categories: control characters (NUL, line ends, escapes) and lone surrogates.
_UNPRINTABLE = {"Cc", "Cs"}


def checked_name(argument: str, name: object) -> str:
    """``name``, if a file or folder beside others may be called so.

    A name that passes stays inside the folder it is joined to, on every system, and is the same
    name when it is read back from a listing.

    Args:
        argument: what the error calls it, for example ``"concept"``.
        name: what a user, a file or a table gave.

    Raises:
        ValueError: it is no string, empty, ``.`` or ``..``, longer than 255 bytes, begins or ends
            with white space, or holds a path separator, a control character (NUL, line ends) or a
            lone surrogate.
    """
    fault = _fault(name)
    if fault is not None:
        shown = repr(name if len(repr(name)) <= 80 else f"{str(name)[:60]}...")
        raise ValueError(
            f"{argument} becomes the name of a file or folder, and {fault}, came {shown}; "
            "rename it, for example with letters, digits, '-' and '_' alone"
        )
    return name


def _fault(name: object) -> str | None:
    """What is wrong with ``name``, as the middle of a sentence."""
    if not isinstance(name, str):
        return f"a name is a string, not {type(name).__name__}"
    if not name:
        return "must not be empty"
    if name in (".", ".."):
        return "must not mean a folder itself or the one above"
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        return "must hold no control characters (NUL, line ends, escapes) or lone surrogates"
    if set(name) & {"/", "\\"}:
        return "must hold no path separator ('/' or '\\')"
    if name != name.strip():
        return "must not begin or end with white space"
    if len(os.fsencode(name)) > LONGEST:
        return f"must have at most {LONGEST} bytes"
    return None
