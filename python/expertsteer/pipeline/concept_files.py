"""Where the contrast sets of many concepts are read from, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..contrast.contrast_set import ContrastSet
from ..contrast.examples import Example
from ..contrast.rows import ContrastSetError
from ..contrast.stream import ContrastStream
from ..contrast.tables import JSON_LINES, PARQUET
from ..support.names import checked_name
from ..support.paths import local_path

INDEX = "index.json"
Sources = dict[str, Callable[[], Iterator[Example]]]


def sources(contrasts: Any, columns: Mapping[str, str]) -> Sources:
    """What reads each concept's examples anew, by name."""
    if isinstance(contrasts, Mapping):
        for name, contrast in contrasts.items():
            _require_name(name)
            if not isinstance(contrast, ContrastSet):
                raise ContrastSetError(
                    f"contrasts must be contrast sets by name, came {name!r}: "
                    f"{type(contrast).__name__}"
                )
        found = {name: contrast.numbered for name, contrast in contrasts.items()}
    else:
        folder = local_path(contrasts, "contrasts")
        if not folder.is_dir():
            raise ContrastSetError(f"contrasts must be a folder, there is none at {folder}")
        kinds = JSON_LINES + PARQUET
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
        found = {}
        for path in paths:
            _require_name(path.stem)
            if path.stem in found:
                raise ContrastSetError(
                    f"{path}: each concept is called like its file, and {path.stem!r} is taken; "
                    "rename it"
                )
            found[path.stem] = ContrastStream.from_file(path, columns).__iter__
    if not found:
        where = "" if isinstance(contrasts, Mapping) else f" in {contrasts}"
        raise ContrastSetError(
            f"contrasts: there is no contrast set{where}; give jsonl or parquet files"
        )
    return found


def _require_name(name: Any) -> None:
    """Refuse what the folder of a concept's vectors cannot be called beside the others."""
    try:
        checked_name("the concept", name)
    except ValueError as error:
        raise ContrastSetError(f"contrasts: {error}") from None
    if name in (INDEX, "captures"):
        raise ContrastSetError(
            f"contrasts: {name!r} stands for something else in the folder of all vectors; call the "
            "concept otherwise"
        )
