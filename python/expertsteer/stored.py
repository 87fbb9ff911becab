"""A capture on disk, read one layer at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from ._digests import require_equal
from ._files import open_artifact, signature
from ._paths import local_path
from ._reading import (
    OBJECT,
    TEXT,
    WHOLE,
    ArtifactError,
    checked_field,
    checked_layers,
    either,
    listed,
    reading,
)
from ._tensors import as_tensor

if TYPE_CHECKING:
    from .artifacts import HiddenStates

_WHOLE = ""  # no tensor has this name


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
        digests: of each file, by tensor, and by layer for the states; ``None`` for files that were
            written before there were any.

    As of `HiddenStates`, ``len`` is the number of examples, and ``states[i]`` is ``[N, D]``, the
    states of decoder layer ``layers[i]``, read when it is asked for.

    Opening checks names, shapes and types. The bytes of a layer of a file are checked against
    their digest when they are first read, and again once the file has changed; `verify` checks
    all at once. States without digests cannot be checked.

    Raises:
        ArtifactError: while reading: a file that is damaged, or was replaced by another.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    layers: tuple[int, ...]
    position: str | int
    model: dict[str, Any]
    digests: tuple[dict[str, Any] | None, ...] = ()
    # What was found right, by file, tensor and layer: the file's signature then.
    _right: dict[tuple[int, str, int | None], tuple[int, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return self.shape[1]

    @property
    def states(self) -> LayersOnDisk:
        return LayersOnDisk(self)

    def verify(self) -> None:
        """Read everything, and check it against the digests that were written with it.

        Raises:
            ArtifactError: at the first file that is damaged or changed.
        """
        for number in range(len(self.paths)):
            for name in ("labels", "keys", "pairs"):
                self._read(number, name)
            for place in range(len(self.layers)):
                self._read(number, "states", place)

    def _expected(self, number: int, name: str) -> Any:
        known = self.digests[number] if self.digests else None
        return None if known is None else known.get(name)

    def _read(self, number: int, name: str, place: int | None = None) -> Tensor | None:
        """A tensor of a file, or one layer of it, checked; ``None`` where there is none."""
        path, expected = self.paths[number], self._expected(number, name)
        before = signature(path)
        with reading(path, "safetensors file"), safe_open(path, "pt") as stream:
            if expected is None and name not in stream.keys():  # noqa: SIM118 (no mapping)
                return None
            part = stream.get_slice(name)[:] if place is None else stream.get_slice(name)[place]
            part = part.clone()
        self._require_right(number, name, place, part, before)
        return part

    def _require_right(
        self, number: int, name: str, place: int | None, part: Tensor, before: tuple[int, ...]
    ) -> None:
        """Whether ``part`` is what was written; ``before`` is the file's signature before it was
        read."""
        path, expected = self.paths[number], self._expected(number, name)
        key = number, name, place
        self._require_unchanged(number, before)
        if expected is None:
            return
        if self._right.get(key) != before:
            require_equal(path, name, part, expected if place is None else expected[place])
        self._right[key] = before

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

    def _require_unchanged(self, number: int, seen: tuple[int, ...]) -> None:
        """Refuse a file that was replaced while it was read, or, where it has no digests and was
        checked as a whole when it was opened, since then."""
        checked = self._right.get((number, _WHOLE, None), seen)
        if seen != checked or signature(self.paths[number]) != checked:
            raise ArtifactError(
                f"{self.paths[number]} was replaced after it was opened; open the states anew"
            )

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
        for number, count in enumerate(self.counts):
            here = ((rows >= first) & (rows < first + count)).nonzero().flatten()
            if len(here):
                self._take(number, places, rows[here] - first, states, here)
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

    def _take(
        self, number: int, places: list[int], rows: Tensor, into: Tensor, here: Tensor
    ) -> None:
        """Some rows of one file; each layer is read whole once, to be checked."""
        path = self.paths[number]
        before = signature(path)
        if self._expected(number, "states") is not None:
            for place in places:
                if self._right.get((number, "states", place)) != before:
                    self._read(number, "states", place)
        with reading(path, "safetensors file"), safe_open(path, "pt") as stream:
            mapped = stream.get_tensor("states")  # only the rows that are taken are read
            for taken, place in zip(into, places):
                taken[here] = mapped[place, rows]
        self._require_unchanged(number, before)

    def relabelled(self, labels: Tensor) -> StoredStates:
        """The same states with other labels ``[N]``."""
        other = replace(self)
        other._right.update(self._right)
        vars(other)["labels"] = labels  # where the column would be kept once it is read
        return other

    def read(self) -> HiddenStates:
        """All of it in memory."""
        return self.take(torch.arange(self.shape[1], device="cpu"))

    def _column(self, name: str) -> Tensor | None:
        parts = [self._read(number, name) for number in range(len(self.paths))]
        return None if any(part is None for part in parts) else torch.cat(parts)


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
            return stored._read(0, "states", index)
        whole = torch.empty(self.shape[1:], dtype=stored.dtype, device="cpu")
        for number, rows in enumerate(whole.split(stored.counts)):
            rows.copy_(stored._read(number, "states", index))
        return whole


def open_states(folder: str | os.PathLike) -> StoredStates:
    """Open what `HiddenStates.save_pretrained` or `capture_to` wrote.

    Names, shapes and types are checked now, contents when they are first read (`StoredStates`);
    those of a single file that was written before there were digests now, as a whole.

    Raises:
        ArtifactError: a missing, truncated or foreign file, or a capture that is not complete.
    """
    from ._shards import MANIFEST, Shards

    folder = local_path(folder, "folder")
    with reading(folder, "folder"):
        sharded = (folder / MANIFEST).is_file()
    if sharded:
        return Shards.open(folder).stored()
    opened = open_artifact(folder, "hidden_states")
    path, about = opened.path, about_states(opened.document, folder)
    with reading(path, "file of states"), safe_open(path, "pt") as stream:
        shape, dtype = shape_and_type(stream)
    if len(shape) != 3 or len(about["layers"]) != shape[0]:
        raise ArtifactError(f"{path}: {len(about['layers'])} layers for states of shape {shape}")
    if opened.digests is not None:
        checked_field(opened.digests, "states", listed(TEXT, shape[0]), f"{path}, digests")
    stored = StoredStates((path,), shape[1:2], shape, dtype, digests=(opened.digests,), **about)
    if opened.digests is None:
        stored._right[0, _WHOLE, None] = opened.signature
    return stored


def about_states(header: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Layers, position and model as a document of states has them, checked."""
    where = folder / "hidden_states.safetensors"
    return {
        "layers": checked_layers(header, where),
        "position": checked_field(header, "position", either(TEXT, WHOLE), where),
        "model": checked_field(header, "model", OBJECT, where),
    }


def shape_and_type(stream: Any) -> tuple[tuple[int, ...], torch.dtype]:
    """Of the states of an opened file, from its header."""
    view = stream.get_slice("states")
    shape = tuple(view.get_shape())
    return shape, view[(slice(0, 0),) * len(shape)].dtype


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
