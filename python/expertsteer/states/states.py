"""A capture: the hidden states of one model over a contrast set, in memory or left on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.artifact_files import parsing, read_artifact, write_artifact
from ..support.paths import local_path
from ..support.tensors import as_tensor, require_finite, row_indices
from .opening import about_states, of_folder
from .scale import median_deviation
from .tensor_files import StateFiles


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Decoder-layer outputs of one model over a contrast set, one state per example and layer.

    Attributes:
        states: ``[L, N, D]``, floating point; row ``l`` belongs to decoder layer ``layers[l]``.
        labels: ``[N]`` int64, 1 for the behaviour to steer towards and 0 for its opposite.
        layers: decoder-layer indices counted from 0, strictly increasing.
        keys: ``[N]`` int64, one fingerprint per example, so that two captures can be checked to
            hold the same examples in the same order; ``None`` skips that check.
        pairs: ``[N]`` int64, equal numbers for the sides of one pair and -1 for examples that
            stand alone; splits keep pairs together. ``None`` where nothing is paired.
        position: the token whose state was kept: ``"last"``, ``"mean"`` or an index.
        model: where the states came from (name, revision, architecture, num_layers, hidden_size).

    Raises:
        ValueError: wrong shapes, labels other than 0/1, non-finite states.
    """

    states: Tensor
    labels: Tensor
    layers: tuple[int, ...] = ()
    keys: Tensor | None = None
    pairs: Tensor | None = None
    position: str | int = "last"
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or not self.states.is_floating_point():
            raise ValueError(
                "states must be a floating-point tensor [layers, examples, width], came "
                f"{tuple(self.states.shape)} of {self.states.dtype}"
            )
        count_layers, examples, _ = self.states.shape
        labels = as_tensor(self.labels)
        if labels.shape != (examples,) or not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(
                f"labels must be {examples} zeros and ones, one per example; "
                f"came shape {tuple(labels.shape)}, values {labels.unique()[:8].tolist()}"
            )
        object.__setattr__(self, "labels", labels.to(torch.int64))
        layers = tuple(int(i) for i in self.layers) or tuple(range(count_layers))
        if len(layers) != count_layers or any(b <= a for a, b in zip(layers, layers[1:])):
            raise ValueError(
                f"layers must be {count_layers} increasing indices, one per row of states; "
                f"came {layers}"
            )
        object.__setattr__(self, "layers", layers)
        for name in ("keys", "pairs"):
            values = getattr(self, name)
            if values is not None and values.shape != (examples,):
                raise ValueError(
                    f"{name} must have shape ({examples},), came {tuple(values.shape)}"
                )
        object.__setattr__(self, "states", self.states.detach())
        require_finite("states", self.states)

    @property
    def width(self) -> int:
        return self.states.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.states.dtype

    def __len__(self) -> int:
        return self.states.shape[1]

    def layer(self, index: int) -> Tensor:
        """The states ``[N, D]`` of decoder layer ``index``."""
        return self.states[_place(self, index)]

    def scale(self, index: int) -> float:
        """How far apart a layer's states are, ``sqrt(sum_j median_i |h_ij - median h_j|^2)``."""
        return median_deviation(self.layer(index), f"the states of layer {index}")

    def take(
        self, rows: Sequence[int] | Tensor, layers: Sequence[int] | None = None
    ) -> HiddenStates:
        """The same capture restricted to some examples: row indices in order, or a bool mask.

        ``layers`` restricts it to some decoder layers too, by their indices in increasing order.
        """
        rows = row_indices(rows, len(self)).to(self.states.device)
        if layers is None:
            states = self.states[:, rows]
        else:
            states = torch.stack([self.layer(index)[rows] for index in layers])
        kept = _columns(self, rows)
        layers = self.layers if layers is None else tuple(layers)
        return replace(self, states=states, labels=self.labels[rows], layers=layers, **kept)

    def relabelled(self, labels: Tensor) -> HiddenStates:
        """The same states with other labels ``[N]``."""
        return replace(self, labels=labels)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        tensors = {"states": self.states, "labels": self.labels}
        optional = {"keys": self.keys, "pairs": self.pairs}
        tensors |= {name: t for name, t in optional.items() if t is not None}
        header = {"layers": self.layers, "position": self.position, "model": self.model}
        write_artifact(folder, "hidden_states", tensors, header, by_layer=["states"])

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> HiddenStates:
        tensors, header = read_artifact(folder, "hidden_states")
        with parsing(folder, "hidden_states"):
            return cls(**tensors, **about_states(header, local_path(folder, "folder")))

    @staticmethod
    def open(folder: str | os.PathLike) -> StoredStates:
        """What ``save_pretrained`` or `capture_to` wrote, its layers left on disk until needed."""
        return StoredStates(**of_folder(folder))


@dataclass(frozen=True)
class StoredStates:
    """A capture whose states stay on disk, for `mutual_information`, `align` and `fit_vectors`.

    Attributes:
        files: the tensor files, one or many, with the examples in each (``files.counts``).
        paths: of these files.
        shape: ``(L, N, D)``; dtype: of the states.
        layers: decoder-layer indices, one per layer of the files.
        position, model: as in `HiddenStates`.
        labels, keys, pairs: ``[N]`` as in `HiddenStates`, read when first asked for.

    As of `HiddenStates`, ``len`` is the number of examples, and ``states[i]`` is ``[N, D]``, the
    states of decoder layer ``layers[i]``, read when it is asked for.

    Opening checks names, shapes and types. The bytes of a layer of a file are checked against
    their digest when they are first read, and again once the file has changed; `verify` checks
    all at once. States without digests cannot be checked.

    Raises:
        ArtifactError: while reading: a file that is damaged, or was replaced by another.
    """

    files: StateFiles
    shape: tuple[int, int, int]
    dtype: torch.dtype
    layers: tuple[int, ...]
    position: str | int
    model: dict[str, Any]

    def __len__(self) -> int:
        return self.shape[1]

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.files.paths

    @property
    def states(self) -> LayersOnDisk:
        return LayersOnDisk(self)

    @property
    def width(self) -> int:
        return self.shape[2]

    @cached_property
    def labels(self) -> Tensor:
        return self.files.column("labels")

    @cached_property
    def keys(self) -> Tensor | None:
        return self.files.column("keys")

    @cached_property
    def pairs(self) -> Tensor | None:
        pairs = self.files.column("pairs")
        return None if pairs is None or bool((pairs < 0).all()) else pairs

    def verify(self) -> None:
        """Read everything, and check it against the digests that were written with it.

        Raises:
            ArtifactError: at the first file that is damaged or changed.
        """
        self.files.verify(len(self.layers))

    def layer(self, index: int) -> Tensor:
        """The states ``[N, D]`` of decoder layer ``index``."""
        return self.states[_place(self, index)]

    def scale(self, index: int) -> float:
        """How far apart a layer's states are, ``sqrt(sum_j median_i |h_ij - median h_j|^2)``."""
        return median_deviation(self.layer(index), f"the states of layer {index}")

    def take(
        self, rows: Sequence[int] | Tensor, layers: Sequence[int] | None = None
    ) -> HiddenStates:
        """Some examples in memory, at all layers or some; see `HiddenStates.take`."""
        rows = row_indices(rows, len(self)) % len(self)
        layers = self.layers if layers is None else tuple(layers)
        places = [_place(self, layer) for layer in layers]
        states = torch.empty(len(layers), len(rows), self.width, dtype=self.dtype, device="cpu")
        self.files.take(places, rows, states)
        return HiddenStates(
            states,
            self.labels[rows],
            layers,
            **_columns(self, rows),
            position=self.position,
            model=self.model,
        )

    def read(self) -> HiddenStates:
        """All of it in memory."""
        return self.take(torch.arange(len(self), device="cpu"))

    def relabelled(self, labels: Tensor) -> StoredStates:
        """The same states with other labels ``[N]``."""
        other = replace(self)
        vars(other)["labels"] = labels  # where the column would be kept once it is read
        return other


@dataclass(frozen=True)
class LayersOnDisk:
    """The layers of a capture, each read from disk when it is asked for by its place."""

    stored: StoredStates

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.stored.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"layer {index} is out of range for {len(self)} layers")
        whole = torch.empty(self.shape[1:], dtype=self.stored.dtype, device="cpu")
        self.stored.files.layer(index, whole)
        return whole


def _place(capture: HiddenStates | StoredStates, index: int) -> int:
    if index not in capture.layers:
        raise ValueError(f"layer {index} was not captured; captured layers: {capture.layers}")
    return capture.layers.index(index)


def _columns(capture: HiddenStates | StoredStates, rows: Tensor) -> dict[str, Tensor | None]:
    """Keys and pairs of some examples."""
    found = {name: getattr(capture, name) for name in ("keys", "pairs")}
    return {name: None if column is None else column[rows] for name, column in found.items()}


Captured = HiddenStates | StoredStates
