"""The tensor files of a capture: parts of them read when they are asked for, and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..support.artifact_files import signature
from ..support.digests import require_equal
from ..support.reading import ArtifactError, reading

COLUMNS = ("labels", "keys", "pairs")
_WHOLE = ""  # no tensor has this name


@dataclass(frozen=True)
class StateFiles:
    """One file or many that follow each other, all with ``states [L, n, D]`` and columns ``[n]``.

    Attributes:
        paths: of the files; every reading maps one, copies what it was asked for and lets go.
        counts: examples in each.
        digests: of each, by tensor, and by layer for the states; ``None`` for files that were
            written before there were any.

    The bytes of a layer of a file are checked against their digest when they are first read, and
    again once the file has changed. What has no digests cannot be checked.

    Raises:
        ArtifactError: while reading: a file that is damaged, or was replaced by another.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    digests: tuple[dict[str, Any] | None, ...]
    # What was found right, by file, tensor and layer: the file's signature then.
    _right: dict[tuple[int, str, int | None], tuple[int, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def checked_as_a_whole(self, number: int, seen: tuple[int, ...]) -> None:
        """Remember that a file without digests was right when it had this signature."""
        self._right[number, _WHOLE, None] = seen

    def read(self, number: int, name: str, place: int | None = None) -> Tensor | None:
        """A tensor of a file, or one layer of it, checked; ``None`` where there is none."""
        path, expected = self.paths[number], self.digests[number]
        before = signature(path)
        with reading(path, "safetensors file"), safe_open(path, "pt") as stream:
            known = None if expected is None else expected.get(name)
            if known is None and name not in stream.keys():  # noqa: SIM118 (no mapping)
                return None
            part = stream.get_slice(name)[:] if place is None else stream.get_slice(name)[place]
            part = part.clone()
        key = number, name, place
        self._require_unchanged(number, before)
        if known is not None:
            if self._right.get(key) != before:
                require_equal(path, name, part, known if place is None else known[place])
            self._right[key] = before
        return part

    def column(self, name: str) -> Tensor | None:
        """``[N]`` over all files; ``None`` where one of them has none."""
        parts = [self.read(number, name) for number in range(len(self.paths))]
        return None if any(part is None for part in parts) else torch.cat(parts)

    def layer(self, place: int, into: Tensor) -> None:
        """The states of a layer, written into ``[N, D]``."""
        for number, rows in enumerate(into.split(self.counts)):
            rows.copy_(self.read(number, "states", place))

    def take(self, places: list[int], rows: Tensor, into: Tensor) -> None:
        """Some rows (none negative) of some layers, written into ``[len(places), len(rows), D]``.

        Each layer of a file is read whole once, to be checked.
        """
        first = 0
        for number, count in enumerate(self.counts):
            here = ((rows >= first) & (rows < first + count)).nonzero().flatten()
            if len(here):
                self._take(number, places, rows[here] - first, into, here)
            first += count

    def _take(
        self, number: int, places: list[int], rows: Tensor, into: Tensor, here: Tensor
    ) -> None:
        path = self.paths[number]
        before = signature(path)
        if (self.digests[number] or {}).get("states") is not None:
            for place in places:
                if self._right.get((number, "states", place)) != before:
                    self.read(number, "states", place)
        with reading(path, "safetensors file"), safe_open(path, "pt") as stream:
            mapped = stream.get_tensor("states")  # only the rows that are taken are read
            for taken, place in zip(into, places):
                taken[here] = mapped[place, rows]
        self._require_unchanged(number, before)

    def verify(self, layers: int) -> None:
        """Read everything, and check it."""
        for number in range(len(self.paths)):
            for name in COLUMNS:
                self.read(number, name)
            for place in range(layers):
                self.read(number, "states", place)

    def _require_unchanged(self, number: int, seen: tuple[int, ...]) -> None:
        """Refuse a file that was replaced while it was read, or, where it has no digests and was
        checked as a whole when it was opened, since then."""
        checked = self._right.get((number, _WHOLE, None), seen)
        if seen != checked or signature(self.paths[number]) != checked:
            raise ArtifactError(
                f"{self.paths[number]} was replaced after it was opened; open the states anew"
            )


def shape_and_type(stream: Any) -> tuple[tuple[int, ...], torch.dtype]:
    """Of the states of an opened file, from its header."""
    view = stream.get_slice("states")
    shape = tuple(view.get_shape())
    return shape, view[(slice(0, 0),) * len(shape)].dtype
