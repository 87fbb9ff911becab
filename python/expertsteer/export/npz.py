"""A plain NumPy archive, for programs that have nothing but NumPy.

``numpy.load(path)`` gives ``layers [K]`` (blocks, from 0), ``vectors [K, d]``, ``scales [K]`` and
``document``, a json text with the metadata. At layer ``layers[k]`` strength s adds
``s * scales[k] * vectors[k]``. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from ..support.artifact_files import to_json
from ..support.numbers import count
from ..support.paths import local_path
from ..support.reading import (
    OBJECT,
    TEXT,
    ArtifactError,
    checked_field,
    listed,
    load_json,
    optional,
    reading,
)
from ..support.versions import package_versions
from ..support.writing import replacing
from ..vectors.vectors import SteeringVectors
from .archives import checked_archive
from .directions import checked_vectors, new_file

_KIND = "expertsteer.npz"
_WHAT = "NumPy archive of plain arrays"
_FIELDS = ("layers", "vectors", "scales", "document")


def export_npz(vectors: SteeringVectors, path: str | os.PathLike) -> Path:
    """Write vectors, scales and metadata; read back and compared bit for bit.

    Types that NumPy lacks (bfloat16) are stored as float32, which holds them exactly, and come
    back as they were.

    Args:
        vectors: all that is in them is kept.
        path: the file, ending in ``.npz``; replaced where it exists.

    Raises:
        ValueError: vectors of zeros, another ending.
        ArtifactError: metadata that json cannot hold; the file cannot be written, or was read
            back different.
    """
    checked_vectors(vectors)
    path = new_file(path, ".npz")
    types = [str(v.dtype).removeprefix("torch.") for v in vectors.vectors.values()]
    kinds = {v.dtype for v in vectors.vectors.values()}
    exact = kinds.pop() if len(kinds) == 1 else torch.float64
    stored = torch.float32 if exact == torch.bfloat16 else exact
    document = {
        "format": _KIND,
        "format_version": 1,
        "commented": True,  # the archive's comment holds the digest of its arrays
        "dtypes": types,
        "metadata": {"versions": package_versions(), **vectors.metadata},
    }
    arrays = {
        "layers": np.array(vectors.layers, np.int64),
        "vectors": torch.stack([v.cpu().to(stored) for v in vectors.vectors.values()]).numpy(),
        "scales": np.array(list(vectors.scales.values()), np.float64),
        "document": np.array(to_json(document)),
    }
    made = io.BytesIO()
    np.savez(made, **arrays)
    with zipfile.ZipFile(made, "a") as archive:
        archive.comment = _digest(arrays)
    with replacing(path) as temporary:
        temporary.write_bytes(made.getvalue())
        _require_equal(path, vectors, import_npz(temporary))
    return path


def import_npz(path: str | os.PathLike) -> SteeringVectors:
    """Read what `export_npz` wrote, or an archive with ``layers`` and ``vectors`` by hand.

    Raises:
        ValueError: no such file; a field that is missing or has another shape.
        ArtifactError: a damaged file, or one with pickled objects.
    """
    path = local_path(path)
    if not path.is_file():
        raise ValueError(f"path {str(path)!r} is no file; give an archive of vectors (*.npz)")
    with reading(path, _WHAT):
        data, comment = checked_archive(path, _WHAT)
        _require_sizes(data)
        archive = np.load(data, allow_pickle=False)
        fields = {name: archive[name] for name in _FIELDS if name in archive.files}
    layers, rows = _field(path, fields, "layers", 1, "iu"), _field(path, fields, "vectors", 2, "f")
    scales = np.ones(len(layers))
    if "scales" in fields:
        scales = _field(path, fields, "scales", 1, "f")
    if not len(layers) == len(rows) == len(scales):
        raise ValueError(
            f"{path}: layers, vectors and scales must have one entry per layer, came "
            f"{len(layers)}, {len(rows)} and {len(scales)}"
        )
    if len(set(layers.tolist())) < len(layers):
        raise ValueError(f"{path}: layers must be different, came {layers.tolist()}")
    document = _document(path, fields)
    _require_ours(path, fields, document, comment)
    types = document.get("dtypes") or [None] * len(rows)
    with reading(path, _WHAT):
        if len(types) != len(rows):
            raise ValueError(f"'document' names {len(types)} types for {len(rows)} vectors")
        made = [_as(torch.from_numpy(row.copy()), kind) for row, kind in zip(rows, types)]
        return SteeringVectors(
            dict(zip(layers.tolist(), made)),
            dict(zip(layers.tolist(), scales.tolist())),
            document.get("metadata") or {"imported_from": "npz"},
        )


def _digest(fields: dict[str, np.ndarray]) -> bytes:
    """Of all arrays: the archive's comment, so that one which lost an array does not pass for an
    archive by hand."""
    made = hashlib.blake2b(digest_size=16)
    for name, array in sorted(fields.items()):
        made.update(f"{name} {array.dtype.str} {array.shape};".encode())
        made.update(np.ascontiguousarray(array).tobytes())
    return f"{_KIND} {made.hexdigest()}".encode()


def _require_ours(path: Path, fields: dict, document: dict, comment: bytes) -> None:
    ours = comment.startswith(_KIND.encode()) or document.get("commented")
    if ours and comment != _digest(fields):
        raise ArtifactError(
            f"{path}: its arrays are not those that were written (their digest differs); download "
            "or copy it again"
        )


def _require_sizes(data: io.BytesIO) -> None:
    """NumPy takes the memory that an array's header asks for before it reads any of it."""
    with zipfile.ZipFile(data) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = f"read_array_header_{version[0]}_0"
                shape, _, dtype = getattr(np.lib.format, read)(stream)
                size = stream.tell() + math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and size != member.file_size:
                raise ValueError(
                    f"{member.filename} declares {count(size)} bytes of {count(member.file_size)}"
                )
    data.seek(0)


def _field(path: Path, fields: dict, name: str, dimensions: int, kinds: str) -> np.ndarray:
    array = fields.get(name)
    if array is None:
        raise ValueError(f"{path} has no array {name!r}; expected layers [K] and vectors [K, d]")
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        what = "whole numbers" if "i" in kinds else "floating point"
        raise ValueError(
            f"{path}: {name!r} must be {what} with {dimensions} dimension(s), came shape "
            f"{array.shape} of {array.dtype}"
        )
    return array


def _document(path: Path, fields: dict) -> dict:
    if "document" not in fields:
        return {}
    where = f"{path}, 'document'"
    with reading(where, f"json of {_KIND} version 1", "install the release that wrote it"):
        document = load_json(str(fields["document"]))
        if document["format"] != _KIND or document["format_version"] != 1:
            raise ValueError(f"format {document['format']!r} {document['format_version']!r}")
    checked_field(document, "metadata", optional(OBJECT), where, default=None)
    checked_field(document, "dtypes", optional(listed(TEXT)), where, default=None)
    return document


def _as(row: torch.Tensor, kind: str | None) -> torch.Tensor:
    dtype = row.dtype if kind is None else getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'document' names the type {kind!r}, which torch does not have")
    return row.to(dtype)


def _require_equal(path: Path, written: SteeringVectors, read: SteeringVectors) -> None:
    same = written.layers == read.layers and written.scales == read.scales
    pairs = [(written.vectors[i].cpu(), read.vectors[i]) for i in written.layers if same]
    if not same or not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs):
        raise ArtifactError(f"{path} was read back with other vectors; check the disk, write again")
