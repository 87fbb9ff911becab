"""A capture on disk, read one layer at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ._files import ArtifactError, checked_artifact, parsing, read_layer


@dataclass(frozen=True)
class StoredStates:
    """Saved `HiddenStates` whose layers stay on disk: a source of `mutual_information`.

    Attributes:
        path: the tensor file; every reading maps it, copies one layer and lets go.
        shape: ``(L, N, D)``.
        layers: decoder-layer indices, one per layer of the file.
        position, model: as in `HiddenStates`.

    ``len`` is L and ``stored[i]`` is ``[N, D]``, the states of decoder layer ``layers[i]``.
    """

    path: Path
    shape: tuple[int, int, int]
    layers: tuple[int, ...]
    position: str | int
    model: dict[str, Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"layer {index} is out of range for {len(self)} layers")
        return read_layer(self.path, "states", index)


def open_states(folder: str | os.PathLike) -> StoredStates:
    """Open what `HiddenStates.save_pretrained` wrote; the file's digest is checked, once.

    Raises:
        ArtifactError: a missing, truncated or foreign file.
    """
    path, header = checked_artifact(folder, "hidden_states")
    with parsing(folder, "hidden_states"):
        try:
            with safe_open(path, "pt") as stream:
                shape = tuple(stream.get_slice("states").get_shape())
        except SafetensorError as error:
            raise ArtifactError(f"{path} holds no states: {error}") from error
        if len(shape) != 3 or len(header["layers"]) != shape[0]:
            raise ValueError(f"{len(header['layers'])} layers for states of shape {shape}")
        return StoredStates(
            path, shape, tuple(header["layers"]), header["position"], header["model"]
        )
