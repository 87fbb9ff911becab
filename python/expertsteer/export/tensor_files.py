"""Safetensors files tensor by tensor: bytes go from file to file, never a whole file into memory.

The safetensors library writes a file from tensors that are all in memory at once. An exported
checkpoint is almost all unchanged bytes, so here a file is laid out first and then filled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..support.reading import ArtifactError, load_json, reading

CHUNK = 4 << 20
FLOATING = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in FLOATING.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: ``length`` bytes from ``start``, row by row."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int

    def rows(self, first: int, last: int) -> StoredTensor:
        """Rows ``first`` to ``last`` (not included) of a tensor with one or more dimensions."""
        stride = self.length // self.shape[0]
        shape = (last - first, *self.shape[1:])
        start, length = self.start + first * stride, (last - first) * stride
        return StoredTensor(self.path, self.name, self.dtype, shape, start, length)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a few megabytes at a time.

        Raises:
            ArtifactError: the file ends before the tensor does.
        """
        left = self.length
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            while left:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise ArtifactError(
                        f"{self.path} is truncated: tensor {self.name!r} ends behind the file's "
                        "end; download or copy the file again"
                    )
                left -= len(chunk)
                yield chunk

    def load(self) -> Tensor:
        """The tensor itself; for small ones of a type in `FLOATING`."""
        return torch.frombuffer(
            bytearray(b"".join(self.chunks())), dtype=FLOATING[self.dtype]
        ).reshape(self.shape)


@dataclass(frozen=True)
class NewTensor:
    """A tensor in memory that goes into a file."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        return _NAMES[self.tensor.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def length(self) -> int:
        return self.tensor.numel() * self.tensor.itemsize

    def chunks(self) -> Iterator[bytes]:
        yield self.tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the file's metadata.

    Raises:
        ArtifactError: no safetensors file, or a truncated one.
    """
    with reading(path, "safetensors file"):
        # The library checks that the ranges are those of the shapes, and cover the file once.
        with safe_open(path, "pt") as checked:
            metadata = checked.metadata() or {}
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = load_json(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in header.items()}
    return tensors, metadata


def _stored(path: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    first, last = entry["data_offsets"]
    return StoredTensor(
        path, name, entry["dtype"], tuple(entry["shape"]), data + first, last - first
    )


def write_tensors(
    path: Path, tensors: dict[str, StoredTensor | NewTensor], metadata: dict[str, str]
) -> dict[str, bytes]:
    """Write a safetensors file, a few megabytes at a time; returns each tensor's digest."""
    # Wide types first, as the library does: every tensor then starts at a multiple of its size.
    order = sorted(tensors, key=lambda name: -_width(tensors[name]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    place = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.length],
        }
        place += tensor.length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            digest = hashlib.sha256()
            for chunk in tensors[name].chunks():
                digest.update(chunk)
                stream.write(chunk)
            digests[name] = digest.digest()
    return digests


def digest_of(tensor: StoredTensor) -> bytes:
    """The digest of a tensor's bytes, as `write_tensors` returns it."""
    digest = hashlib.sha256()
    for chunk in tensor.chunks():
        digest.update(chunk)
    return digest.digest()


def _width(tensor: StoredTensor | NewTensor) -> float:
    elements = 1
    for extent in tensor.shape:
        elements *= extent
    return tensor.length / max(elements, 1)
