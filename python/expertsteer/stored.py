"""A capture on disk, read one layer at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ._files import ArtifactError, checked_artifact, parsing, read_layer
from ._tensors import as_tensor

if TYPE_CHECKING:
    from .artifacts import HiddenStates


@dataclass(frozen=True)
class StoredStates:
    """A capture whose states stay on disk, for `mutual_information`, `align` and `fit_vectors`.

    Attributes:
        paths: the tensor files, one or many; every reading maps them, copies what it was asked
            for and lets go.
        counts: examples in each file; the files follow each other.
        shape: ``(L, N, D)``; dtype: of the states.
        layers: decoder-layer indices, one per layer of the files.
        position, model: as in `HiddenStates`.
        labels, keys, pairs: ``[N]`` as in `HiddenStates`, read when first asked for.

    As of `HiddenStates`, ``len`` is the number of examples, and ``states[i]`` is ``[N, D]``, the
    states of decoder layer ``layers[i]``, read when it is asked for.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    layers: tuple[int, ...]
    position: str | int
    model: dict[str, Any]

    def __len__(self) -> int:
        return self.shape[1]

    @property
    def states(self) -> LayersOnDisk:
        return LayersOnDisk(self)

    @property
    def width(self) -> int:
        return self.shape[2]

    @cached_property
    def labels(self) -> Tensor:
        return self._column("labels")

    @cached_property
    def keys(self) -> Tensor | None:
        return self._column("keys")

    @cached_property
    def pairs(self) -> Tensor | None:
        pairs = self._column("pairs")
        return None if pairs is None or bool((pairs < 0).all()) else pairs

    def layer(self, index: int) -> Tensor:
        """The states ``[N, D]`` of decoder layer ``index``."""
        return self.states[self._place(index)]

    def _place(self, index: int) -> int:
        if index not in self.layers:
            raise ValueError(f"layer {index} was not captured; captured layers: {self.layers}")
        return self.layers.index(index)

    def scale(self, index: int) -> float:
        """Median Euclidean norm of the states of decoder layer ``index``."""
        return float(self.layer(index).float().norm(dim=-1).median())

    def take(
        self, rows: Sequence[int] | Tensor, layers: Sequence[int] | None = None
    ) -> HiddenStates:
        """Some examples in memory, at all layers or some; see `HiddenStates.take`."""
        from .artifacts import HiddenStates

        rows = row_indices(rows, self.shape[1]) % self.shape[1]
        layers = self.layers if layers is None else tuple(layers)
        places = [self._place(layer) for layer in layers]
        states = torch.empty(len(layers), len(rows), self.shape[2], dtype=self.dtype, device="cpu")
        first = 0
        for path, count in zip(self.paths, self.counts):
            here = ((rows >= first) & (rows < first + count)).nonzero().flatten()
            if len(here):
                with _opened(path) as stream:  # mapped: only the rows that are taken are read
                    mapped = stream.get_tensor("states")
                    for taken, place in zip(states, places):
                        taken[here] = mapped[place, rows[here] - first]
            first += count
        columns = {name: getattr(self, name) for name in ("keys", "pairs")}
        return HiddenStates(
            states,
            self.labels[rows],
            layers,
            position=self.position,
            model=self.model,
            **{name: None if column is None else column[rows] for name, column in columns.items()},
        )

    def relabelled(self, labels: Tensor) -> StoredStates:
        """The same states with other labels ``[N]``."""
        other = replace(self)
        vars(other)["labels"] = labels  # where the column would be kept once it is read
        return other

    def read(self) -> HiddenStates:
        """All of it in memory."""
        return self.take(torch.arange(self.shape[1], device="cpu"))

    def _column(self, name: str) -> Tensor | None:
        parts = []
        for path in self.paths:
            with _opened(path) as stream:
                if name not in stream.keys():  # noqa: SIM118 (no mapping)
                    return None
                parts.append(stream.get_tensor(name).clone())
        return torch.cat(parts)


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
        stored = self.stored
        if not 0 <= index < len(self):
            raise IndexError(f"layer {index} is out of range for {len(self)} layers")
        if len(stored.paths) == 1:
            return read_layer(stored.paths[0], "states", index)
        whole = torch.empty(self.shape[1:], dtype=stored.dtype, device="cpu")
        for path, rows in zip(stored.paths, whole.split(stored.counts)):
            with _opened(path) as stream:
                rows.copy_(stream.get_slice("states")[index])
        return whole


def open_states(folder: str | os.PathLike) -> StoredStates:
    """Open what `HiddenStates.save_pretrained` or `capture_to` wrote.

    The digest of a single file is checked, once; of the shards of a large capture the headers.

    Raises:
        ArtifactError: a missing, truncated or foreign file, or a capture that is not complete.
    """
    from ._shards import MANIFEST, Shards

    if Path(folder, MANIFEST).is_file():
        return Shards.open(folder).stored()
    path, header = checked_artifact(folder, "hidden_states")
    with parsing(folder, "hidden_states"):
        try:
            with safe_open(path, "pt") as stream:
                view = stream.get_slice("states")
                shape, dtype = tuple(view.get_shape()), view[:0, :0, :0].dtype
        except SafetensorError as error:
            raise ArtifactError(f"{path} holds no states: {error}") from error
        if len(shape) != 3 or len(header["layers"]) != shape[0]:
            raise ValueError(f"{len(header['layers'])} layers for states of shape {shape}")
        layers = tuple(header["layers"])
        position, model = header["position"], header["model"]
        return StoredStates((path,), shape[1:2], shape, dtype, layers, position, model)


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}") from error


def row_indices(rows: Sequence[int] | Tensor, count: int) -> Tensor:
    rows = as_tensor(rows)
    if rows.dtype == torch.bool and rows.shape == (count,):
        rows = rows.nonzero().flatten()
    not_whole = rows.numel() > 0 and (rows.dtype == torch.bool or rows.is_floating_point())
    if rows.ndim != 1 or not_whole:
        raise ValueError(
            f"rows must be indices or a mask of {count} bools, came shape {tuple(rows.shape)} of "
            f"{rows.dtype}"
        )
    rows = rows.to(torch.int64)
    outside = rows[(rows < -count) | (rows >= count)]
    if outside.numel():
        raise ValueError(f"rows: {int(outside[0])} is out of range for {count} examples")
    return rows
