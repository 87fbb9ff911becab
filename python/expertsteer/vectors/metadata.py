"""What the metadata of vectors say of models, checked: they come from files, and by hand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ..support.reading import OBJECT, TEXT, WHOLE, checked_field, optional, reading

_MODEL = {
    "name": TEXT,
    "revision": TEXT,
    "architecture": TEXT,
    "num_layers": WHOLE,
    "hidden_size": WHOLE,
}


def understanding(field: str) -> AbstractContextManager[None]:
    """`reading` for what is made of the metadata of vectors, in a ``field`` of them."""
    return reading("metadata", field, "correct it, or leave it out")


def concept_of(metadata: Mapping[str, Any], where: Any) -> Mapping[str, Any]:
    """Which contrast set the vectors of a concept were made of, and by what; empty where unknown.

    Raises:
        ArtifactError: no object.
    """
    return checked_field(metadata, "concept", OBJECT, f"{where}: metadata", default={})


def model_of(metadata: Mapping[str, Any], side: str, where: Any = "metadata") -> dict[str, Any]:
    """What ``metadata`` say of the ``"target"`` or the ``"expert"``; empty where nothing.

    Args:
        where: what the error names.

    Raises:
        ArtifactError: no object, or a name, revision, architecture, depth or width of another
            kind.
    """
    model = checked_field(metadata, side, optional(OBJECT), where, default=None) or {}
    for name, kind in _MODEL.items():
        checked_field(model, name, optional(kind), f"{where}, {side}", default=None)
    return dict(model)
