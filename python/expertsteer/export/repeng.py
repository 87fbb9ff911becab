"""Objects like repeng's ``ControlVector``, in and out; repeng itself is not needed.

Such an object has ``model_type`` (``config.model_type`` of the model) and ``directions``,
``{layer: [d]}``. repeng adds ``coeff * directions[i]`` to the output of block i of the model's
list of layers, blocks counted from 0, so its layers are ours. Scales are multiplied in: coeff takes
the place of strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..vectors.vectors import SteeringVectors
from .directions import checked_vectors, directions, from_directions, require_same
from .gguf import model_family


@dataclass
class ControlVector:
    """What repeng's object of that name holds.

    Attributes:
        model_type: the family of the model.
        directions: ``{block, from 0: [d] float32}``; coefficient 1 adds it.
    """

    model_type: str
    directions: dict[int, np.ndarray]


def to_repeng(
    vectors: SteeringVectors,
    *,
    strength: float | str = 1.0,
    model_type: str | None = None,
    factory: Callable[..., Any] = ControlVector,
) -> Any:
    """Vectors as a control vector; checked by taking it back.

    Args:
        vectors: what to add.
        strength: factor in the directions; repeng's coefficient multiplies it.
        model_type: by default taken from the vectors' metadata.
        factory: ``repeng.ControlVector`` for the real one; called with ``model_type`` and
            ``directions``.

    repeng's ``ControlModel`` wants a direction for each of its ``layer_ids``: give it
    ``vectors.layers``.

    Raises:
        ValueError: vectors of zeros, entries beyond float32, a strength that is not finite or 0.
        ArtifactError: the factory changed the directions.
    """
    strength = checked_vectors(vectors, strength)
    arrays = directions(vectors, strength)
    # Copies: the object is the caller's to change.
    own = {layer: array.copy() for layer, array in arrays.items()}
    made = factory(model_type=model_type or model_family(vectors), directions=own)
    require_same("the control vector", arrays, from_repeng(made))
    return made


def from_repeng(control: Any, *, layer_convention: str = "zero_based") -> SteeringVectors:
    """A control vector of repeng, or of anything shaped like it, as vectors with scale 1.

    Args:
        control: has ``model_type`` and ``directions``.
        layer_convention: ``"zero_based"`` as repeng counts; ``"one_based"`` where 1 is the first
            block.

    Raises:
        ValueError: an object without these, directions that are not ``{layer: [d]}`` arrays of
            one width, or not finite.
    """
    found = getattr(control, "directions", None)
    if not isinstance(found, Mapping):
        raise ValueError(
            "control must have directions {layer: array} like repeng's ControlVector, came "
            f"{type(control).__name__}"
        )
    hint = getattr(control, "model_type", None)
    metadata = {"imported_from": "repeng", "model_hint": hint if isinstance(hint, str) else None}
    return from_directions(found, "control.directions", layer_convention, metadata=metadata)
