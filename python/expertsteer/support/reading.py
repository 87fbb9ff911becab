"""Files of others: the one place where whatever goes wrong while one is read becomes our error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

AGAIN = "download or copy it again"


class InputError(ValueError):
    """An error of ours: it says already what is wrong, where, and what to do."""


class ArtifactError(InputError):
    """A file is missing, unreadable, truncated, damaged, foreign, or not the one that belongs."""


@contextmanager
def reading(
    path: Any, what: str, advice: str = AGAIN, error_type: type[InputError] = ArtifactError
) -> Iterator[None]:
    """Turn whatever is raised while ``path`` is read and understood into one error that names it.

    Bytes that nobody checked lead the libraries that parse them to errors of every kind. Those of
    the system (no right to read, a broken disk) are told from those of the contents.

    Args:
        path: what the error names: the file.
        what: the kind of file, as in "damaged or foreign GGUF file".
        advice: what to do about wrong contents.
        error_type: what is raised; an `InputError` passes as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise error_type(
                f"{path} cannot be read: {error.strerror or error}; {_way_out(error)}"
            ) from error
        told = f"{type(error).__name__}: {short(error, 400)}"
        raise error_type(
            f"{path}: truncated, damaged or foreign {what} ({told}); {advice}"
        ) from error


def _way_out(error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "check the path"
    if isinstance(error, IsADirectoryError):
        return "name a file"
    return (
        "nothing is known to be wrong with its contents: mend its permissions or the disk, and "
        "read it again"
    )


def read_bytes(path: Path, what: str) -> bytes:
    """All of a file, at once: what is checked afterwards is what was read."""
    with reading(path, what):
        return path.read_bytes()


def read_text(path: Path, what: str = "text in UTF-8") -> str:
    """The text of a file, or an error that names it."""
    with reading(path, what, "save it as UTF-8"):
        return path.read_bytes().decode("utf-8")


def load_json(text: str | bytes) -> Any:
    """Strict json: no name twice in an object (one of the values would be lost), no NaN.

    Raises:
        ValueError, RecursionError: other text; inside `reading` that is enough.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no json value")


class Kind(NamedTuple):
    """What a value from a file must be."""

    what: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a finite number", _is_number)
TEXT = Kind("a text", lambda v: isinstance(v, str))
OBJECT = Kind("an object", lambda v: isinstance(v, Mapping))
ANY = Kind("a value", lambda v: True)


def listed(kind: Kind, length: int | None = None) -> Kind:
    counted = "a list" if length is None else f"a list of {length}"

    def fits(value: Any) -> bool:
        right = isinstance(value, (list, tuple)) and length in (None, len(value))
        return right and all(map(kind.fits, value))

    return Kind(f"{counted} of {kind.what}", fits)


def by_name(kind: Kind) -> Kind:
    return Kind(
        f"an object of {kind.what} by name",
        lambda v: isinstance(v, Mapping) and all(map(kind.fits, v.values())),
    )


def either(*kinds: Kind) -> Kind:
    what = " or ".join(kind.what for kind in kinds)
    return Kind(what, lambda v: any(kind.fits(v) for kind in kinds))


def optional(kind: Kind) -> Kind:
    return Kind(f"{kind.what} or null", lambda v: v is None or kind.fits(v))


def checked_field(document: Any, name: str, kind: Kind, where: Any, default: Any = ...) -> Any:
    """``document[name]``, checked.

    Args:
        where: what the error names: the file, and the field that holds the document.
        default: for a field that may be left out; without one it must be there.

    Raises:
        ArtifactError: no object, no such field, or a value of another kind.
    """
    if not isinstance(document, Mapping):
        raise ArtifactError(f"{where} must be an object, came {short(document)}")
    value = document.get(name, default)
    if value is ...:
        raise ArtifactError(f"{where}: field {name!r} is missing, expected {kind.what}")
    if not (name not in document and value is default) and not kind.fits(value):
        raise ArtifactError(f"{where}: field {name!r} must be {kind.what}, came {short(value)}")
    return value


def checked_layers(document: Any, where: Any) -> tuple[int, ...]:
    """The field ``layers`` of captured states: indices from 0, increasing, none twice."""
    layers = tuple(checked_field(document, "layers", listed(WHOLE), where))
    if not layers or layers[0] < 0 or any(b <= a for a, b in zip(layers, layers[1:])):
        raise ArtifactError(
            f"{where}: field 'layers' must be increasing indices from 0, came {short(layers)}"
        )
    return layers


def short(value: Any, most: int = 60) -> str:
    """How a value of any size is shown in an error."""
    shown = str(value) if isinstance(value, BaseException) else repr(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
