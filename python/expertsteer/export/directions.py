"""Vectors as the arrays that other programs hold: one array per layer, scale and strength in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..steering.checks import require_effect
from ..steering.strengths import resolved_strength
from ..support.numbers import setting
from ..support.paths import local_path
from ..support.reading import ArtifactError
from ..support.writing import made_folder
from ..vectors.metadata import model_of
from ..vectors.vectors import SteeringVectors

CONVENTIONS = ("zero_based", "one_based")


def checked_vectors(vectors: Any, strength: float | str = 1.0) -> float:
    """The strength as a number.

    Raises:
        ValueError: no `SteeringVectors`, vectors of zeros, layers beyond the model they were fitted
            for, a strength that is not finite or zero, ``"auto"`` without a calibration.
    """
    if not isinstance(vectors, SteeringVectors):
        raise ValueError(f"vectors must be SteeringVectors, came {type(vectors).__name__}")
    require_effect(vectors)
    depth = model_of(vectors.metadata, "target").get("num_layers")
    if depth is not None and max(vectors.layers) >= depth:
        raise ValueError(
            f"vectors steer layer {max(vectors.layers)}, their metadata name a target with {depth} "
            f"layers (0..{depth - 1}); select the layers that it has"
        )
    number = resolved_strength(strength, {0: vectors}, "add")
    if number == 0:
        raise ValueError("strength must not be 0: the file would hold vectors without an effect")
    return number


def directions(vectors: SteeringVectors, strength: float) -> dict[int, np.ndarray]:
    """``{layer: strength * scale * vector}``, ``[d]`` in float32, rounded once.

    Raises:
        ValueError: an entry beyond float32.
    """
    arrays = {}
    for layer in vectors.layers:
        wide = strength * vectors.displacement(layer).double()
        single = wide.float()
        if not bool(single.isfinite().all()) or not bool(single.any()):
            raise ValueError(
                f"strength * scale * vector at layer {layer} is beyond the range of float32 "
                f"(largest entry {setting(float(wide.abs().max()))}); change the strength"
            )
        arrays[layer] = single.cpu().numpy()
    return arrays


def from_directions(
    arrays: Mapping[Any, Any],
    where: str,
    layer_convention: str = "zero_based",
    scales: Mapping[int, float] | None = None,
    metadata: dict[str, Any] | None = None,
) -> SteeringVectors:
    """Vectors whose strength 1 adds these arrays.

    Args:
        arrays: ``{layer: [d]}``, any floating-point type; the layers as the other program counts.
        where: what errors name: the file, or the argument.
        layer_convention: ``"zero_based"``: the number is that of the block, from 0;
            ``"one_based"``: 1 is the first block.
        scales: ``{layer: float}`` to take out of the arrays, layers from 0; 1.0 where not given.
        metadata: of the vectors.

    Raises:
        ValueError: an unknown convention; no array, one that is not ``[d]`` or not finite, other
            widths, a layer that is no whole number or below the first.
    """
    if layer_convention not in CONVENTIONS:
        raise ValueError(
            f"layer_convention must be one of {CONVENTIONS}, came {layer_convention!r}"
        )
    first = CONVENTIONS.index(layer_convention)
    scales = scales or {}
    vectors: dict[int, torch.Tensor] = {}
    for number, array in arrays.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise ValueError(f"{where}: layers must be whole numbers, came {number!r}")
        layer = int(number) - first
        if layer < 0:
            raise ValueError(
                f"{where}: layer {number} is below the first one ({first}) when layers are counted "
                f"{layer_convention}; choose the other layer_convention"
            )
        if layer in vectors:
            raise ValueError(f"{where}: there are two directions for layer {number}")
        array = np.asarray(array)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind != "f":
            raise ValueError(
                f"{where}: the direction of layer {number} must be a floating-point array [width], "
                f"came shape {array.shape} of {array.dtype}"
            )
        wide = array.dtype == np.float64
        tensor = torch.from_numpy(np.array(array, np.float64 if wide else np.float32))
        vectors[layer] = tensor / scales.get(layer, 1.0)
    try:
        result = SteeringVectors(vectors, {i: s for i, s in scales.items() if i in vectors},
                                 metadata or {})  # fmt: skip
        require_effect(result)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return result


def new_file(path: str | os.PathLike, ending: str) -> Path:
    """Where a file is to be written, its folder made.

    Raises:
        ValueError: a folder, or another ending than the programs that read it expect.
    """
    path = local_path(path, "out")
    if path.is_dir():
        raise ValueError(f"out {str(path)!r} is a folder; name a file in it (*{ending})")
    if path.suffix != ending:
        raise ValueError(f"out {str(path)!r} must end in {ending}")
    made_folder(path.parent)
    return path


def require_same(where: Any, written: Mapping[int, np.ndarray], read: SteeringVectors) -> None:
    """What was read back, against what was written.

    Raises:
        ArtifactError: another layer, or an entry more than a rounding away.
    """
    same = tuple(written) == read.layers
    for layer, array in written.items() if same else ():
        again = read.displacement(layer).double().numpy()
        same = same and bool((abs(array - again) <= 2e-7 * abs(array) + 1e-38).all())
    if not same:
        raise ArtifactError(f"{where} was read back with other vectors; write it again")
