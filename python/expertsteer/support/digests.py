"""Digests of tensors, written beside them and checked against what is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .reading import ArtifactError

Digests = dict[str, str | list[str]]


def digest(tensor: Tensor) -> str:
    """blake2b (128 bits) over type, shape and bytes."""
    made = hashlib.blake2b(f"{tensor.dtype}{list(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one entry, or none, may have any stride
    made.update(memoryview(flat.view(torch.uint8).numpy()))
    return made.hexdigest()


def digests(tensors: Mapping[str, Tensor], by_layer: Collection[str] = ()) -> Digests:
    """One for each tensor; for those ``by_layer`` one for each index of their first dimension, so
    that a part can be checked when it is read alone."""
    return {
        name: [digest(layer) for layer in tensor] if name in by_layer else digest(tensor)
        for name, tensor in tensors.items()
    }


def require_equal(path: Any, name: str, tensor: Tensor, expected: Any) -> None:
    """Raise `ArtifactError` unless ``tensor`` is what was written under ``expected``."""
    found = digests({name: tensor}, [name] if isinstance(expected, list) else [])[name]
    if found != expected:
        raise ArtifactError(
            f"{path}: tensor {name!r} is not the one that was written (its digest differs): the "
            "file is damaged, or was changed after it was opened; copy it again, or open it anew"
        )
