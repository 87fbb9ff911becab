"""Layers one at a time: what an estimator may read, checked as it is read.

A source is anything with a length whose item ``i`` is the states ``[N, d]`` of layer i: a tensor
``[L, N, d]``, a list of (memory-mapped) tensors, or the ``states`` of `StoredStates`, each read
from disk when it is asked for. Nothing here keeps a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..states.states import HiddenStates, StoredStates
from ..support.progress import progress
from ..support.tensors import require_finite


@runtime_checkable
class LayerSource(Protocol):
    """Layers by index; ``source[i]`` is ``[N, d]`` in floating point, the same N and d for all."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


# Norms of whole layers between which no square that an estimator takes leaves single precision.
_USUAL = (1e-15, 1e15)


class Shape(NamedTuple):
    layers: int
    examples: int
    width: int


class Layers:
    """A source with its name, its shape and the checks that every reading of it shares.

    Raises:
        ValueError: no layer at all, or something else than ``[L, N, d]`` in floating point.
    """

    def __init__(self, name: str, source: Tensor | HiddenStates | StoredStates | LayerSource):
        self.name, self._given = name, source
        self._source = source.states if isinstance(source, (HiddenStates, StoredStates)) else source
        if not isinstance(self._source, LayerSource):
            raise ValueError(
                f"{name} must be a tensor [layers, N, width] or have a length and give the states "
                f"[N, width] of a layer by index, came {type(source).__name__}"
            )
        shape = getattr(self._source, "shape", None)
        if shape is None:
            if len(self._source) == 0:
                raise ValueError(f"{name} holds no layer")
            shape = (len(self._source), *self._source[0].shape)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(
                f"{name} must be [layers, N, width] with at least one of each, came {tuple(shape)}"
            )
        self.shape = Shape(*shape)

    def __iter__(self) -> Iterator[Tensor]:
        """Each layer in turn, in float64 where it came so and in float32 otherwise."""
        for index in progress(range(self.shape.layers), f"layers of {self.name}"):
            yield self._read(index)

    def label(self, index: int) -> str:
        """What errors call a layer: by its number in the model too, where that is known."""
        layers, model = getattr(self._given, "layers", None), getattr(self._given, "model", None)
        if layers is None:
            return f"{self.name}[{index}]"
        whose = (model or {}).get("name") or "an unnamed model"
        return f"{self.name}[{index}] (layer {layers[index]} of {whose})"

    def _read(self, index: int) -> Tensor:
        states = self._source[index]
        if tuple(states.shape) != self.shape[1:] or not states.is_floating_point():
            raise ValueError(
                f"{self.label(index)} must be floating point of shape {self.shape[1:]} like the "
                f"first layer, came {tuple(states.shape)} of {states.dtype}"
            )
        states = states.detach()
        wide = states if states.dtype == torch.float64 else states.float()
        if not _USUAL[0] < float(torch.linalg.vector_norm(wide)) < _USUAL[1]:
            require_finite(self.label(index), states)
            wide = _of_usual_size(wide)
        return wide


def _of_usual_size(states: Tensor) -> Tensor:
    """The same times a power of two, which no information between layers depends on."""
    largest = float(states.abs().amax())
    if largest == 0:
        return states
    # In two steps, as one factor may be beyond the type.
    half = -round(math.log2(largest)) / 2
    return states * 2.0 ** math.floor(half) * 2.0 ** math.ceil(half)


def paired(x: Layers, y: Layers) -> int:
    """The number of examples that both sources share."""
    if x.shape.examples != y.shape.examples:
        raise ValueError(
            "x and y must be [layers, N, width] over the same N examples, came "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x.shape.examples
