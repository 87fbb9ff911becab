"""A folder of states, opened: names, shapes and types checked, contents left where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..support.artifact_files import open_artifact
from ..support.paths import local_path
from ..support.reading import (
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
from .shards import MANIFEST, Shards
from .tensor_files import StateFiles, shape_and_type


def of_folder(folder: str | os.PathLike) -> dict[str, Any]:
    """What `HiddenStates.save_pretrained` or `capture_to` wrote, as the fields of `StoredStates`.

    Names, shapes and types are checked now, contents when they are first read (`StoredStates`);
    those of a single file that was written before there were digests now, as a whole.

    Raises:
        ArtifactError: a missing, truncated or foreign file, or a capture that is not complete.
    """
    folder = local_path(folder, "folder")
    with reading(folder, "folder"):
        sharded = (folder / MANIFEST).is_file()
    if sharded:
        return of_shards(Shards.open(folder))
    opened = open_artifact(folder, "hidden_states")
    path, about = opened.path, about_states(opened.document, folder)
    with reading(path, "file of states"), safe_open(path, "pt") as stream:
        shape, dtype = shape_and_type(stream)
    if len(shape) != 3 or len(about["layers"]) != shape[0]:
        raise ArtifactError(f"{path}: {len(about['layers'])} layers for states of shape {shape}")
    files = StateFiles((path,), shape[1:2], (opened.digests,))
    if opened.digests is None:
        files.checked_as_a_whole(0, opened.signature)
    else:
        checked_field(opened.digests, "states", listed(TEXT, shape[0]), f"{path}, digests")
    return {"files": files, "shape": shape, "dtype": dtype} | about


def of_shards(shards: Shards) -> dict[str, Any]:
    """All shards of a capture, as the fields of `StoredStates`.

    Raises:
        ArtifactError: shards that are missing or damaged.
    """
    manifest = shards.manifest
    return {
        "files": shards.files(),
        "shape": manifest.shape,
        "dtype": getattr(torch, manifest.dtype),
        "layers": manifest.layers,
        "position": manifest.position,
        "model": manifest.model | {"hidden_size": manifest.width},
    }


def about_states(header: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Layers, position and model as a document of states has them, checked."""
    where = folder / "hidden_states.safetensors"
    return {
        "layers": checked_layers(header, where),
        "position": checked_field(header, "position", either(TEXT, WHOLE), where),
        "model": checked_field(header, "model", OBJECT, where),
    }
