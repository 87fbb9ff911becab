"""What the metadata of vectors say of models, checked: they come from files, and by hand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ..support.reading import OBJECT, TEXT, WHOLE, checked_field, optional, reading

CALIBRATION_KEY = "calibration"  # what ``strength="auto"`` reads
EVALUATION_KEY = "evaluation"  # the controls that the vectors were measured beside
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


def is_fitted(metadata: Mapping[str, Any]) -> bool:
    """Whether vectors were fitted, or made of fitted ones, rather than written down."""
    return bool(metadata.get("method")) or any(map(is_fitted, metadata.get("sum_of") or ()))


def chosen_by(pairing: Mapping[str, Any]) -> str:
    """The rule of ``metadata["pairing"]`` in words, with what it measured."""
    rule = str(pairing["rule"])
    if "effect" not in pairing:
        return rule if rule in ("given", "effect") else f"{rule} mutual information"
    text = f"{rule} ({pairing.get('unit', '?')}): {pairing['effect']}"
    return f"{text}; {pairing['why']}" if pairing.get("why") else text


def require_same_target(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Vectors fitted for different models do not add up to one for either."""
    a, b = (model_of(m, "target") for m in (first, second))
    for name in ("architecture", "num_layers", "hidden_size"):
        if name in a and name in b and a[name] != b[name]:
            raise ValueError(
                f"cannot add vectors fitted for different models: {name} {a[name]!r} and "
                f"{b[name]!r}"
            )


def shared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What two provenances agree on; what they do not is kept under ``sum_of``."""
    return {k: v for k, v in first.items() if second.get(k) == v}
