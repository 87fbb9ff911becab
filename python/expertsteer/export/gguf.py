"""Control vectors as GGUF: for llama.cpp, and for repeng, which reads the same files.

A file holds ``direction.N``, one-dimensional float32, and llama.cpp adds it to the residual stream
after block N, blocks counted from 0, so N is our layer. Its loader refuses N = 0: there is no
place for a vector after the first block. It scales all directions by one factor
(``--control-vector-scaled``), so a file holds ``strength * scale * vector``. The range that
``--control-vector-layer-range`` gives is inclusive at both ends and 1 to the number of layers by
default, which is every layer of the file.

repeng counts blocks from 0 too, and can hold block 0. Some tools number a vector after the first
block 1; such files are read with ``layer_convention="one_based"``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..support.artifact_files import to_json
from ..support.digests import digest
from ..support.paths import local_path
from ..support.reading import (
    NUMBER,
    OBJECT,
    TEXT,
    ArtifactError,
    by_name,
    checked_field,
    load_json,
    reading,
)
from ..support.versions import package_versions
from ..support.writing import replacing
from ..vectors.metadata import model_of
from ..vectors.vectors import SteeringVectors
from .directions import checked_vectors, directions, from_directions, new_file, require_same
from .gguf_header import require_whole

ARCHITECTURE = "controlvector"
PROGRAMS = ("llama.cpp", "repeng")
_DOCUMENT = "expertsteer.document"
_MARK = f"{ARCHITECTURE}.document_digest"  # a file of this package that lost one lacks the other
_WHAT = "GGUF file"


def export_gguf(
    vectors: SteeringVectors,
    path: str | os.PathLike,
    *,
    strength: float | str = 1.0,
    model_hint: str | None = None,
    program: str = "llama.cpp",
) -> Path:
    """Write a control vector; it is read back and compared before it appears under its name.

    Args:
        vectors: what to add, at all positions.
        path: the file, ending in ``.gguf``; replaced where it exists.
        strength: factor in the file; a program's own factor multiplies it. ``"auto"`` takes that
            of the stored calibration.
        model_hint: the family of the model, as llama.cpp calls it (``llama``, ``qwen2``); by
            default taken from the vectors' metadata. Nothing checks it.
        program: ``"llama.cpp"``, or ``"repeng"`` for a file that may hold layer 0.

    Raises:
        ValueError: a vector at layer 0 for llama.cpp, vectors of zeros, entries beyond float32,
            a strength that is not finite or 0, an unknown program; the gguf package is missing.
        ArtifactError: the file cannot be written, or was read back different.
    """
    gguf = _package()
    if program not in PROGRAMS:
        raise ValueError(f"program must be one of {PROGRAMS}, came {program!r}")
    strength = checked_vectors(vectors, strength)
    if program == "llama.cpp" and 0 in vectors.layers:
        raise ValueError(
            "vectors steer layer 0, and llama.cpp has no place for a control vector after its "
            "first block; leave it out (vectors.select, or --layers), or export a stock checkpoint "
            "and convert that to GGUF, where it is a bias"
        )
    path = new_file(path, ".gguf")
    arrays = directions(vectors, strength)
    with replacing(path) as temporary:
        _write(gguf, temporary, arrays, vectors, strength, model_hint or model_family(vectors))
        require_same(path, arrays, import_gguf(temporary))
    return path


def import_gguf(
    path: str | os.PathLike, *, layer_convention: str = "zero_based"
) -> SteeringVectors:
    """Read a control vector: one of ours, of repeng or of llama.cpp's generator.

    Args:
        path: the file.
        layer_convention: ``"zero_based"`` takes N of ``direction.N`` for the block, from 0, which
            is where llama.cpp and repeng add it, and how our own files count; ``"one_based"``
            takes 1 for the first block, for files whose author counted so.

    Returns:
        SteeringVectors whose strength 1 adds what the file holds. Files of this package keep
        scales and metadata; others have scale 1.

    Raises:
        ValueError: no such file, no control vector, a direction that is not one-dimensional
            floating point, widths that differ; the gguf package is missing.
        ArtifactError: a damaged file.
    """
    gguf = _package()
    path = local_path(path)
    if not path.is_file():
        raise ValueError(f"path {str(path)!r} is no file; give a control vector (*.gguf)")
    with reading(path, _WHAT):  # the reader indexes whatever it finds
        require_whole(memoryview(np.memmap(path, np.uint8, "r")))
        reader = gguf.GGUFReader(path)
        kind = _text(reader, "general.architecture")
        hint = _text(reader, f"{ARCHITECTURE}.model_hint")
        document = _document(path, _text(reader, _DOCUMENT), _text(reader, _MARK))
        found = [(t.name, np.array(t.data), t.tensor_type) for t in reader.tensors]
    if kind != ARCHITECTURE:
        raise ValueError(
            f"{path}: general.architecture is {kind!r}, expected {ARCHITECTURE!r}; this is no "
            "control vector"
        )
    if document and layer_convention == "one_based":
        raise ValueError(
            f"{path} was written by this package, whose layers count from 0; leave "
            "layer_convention at 'zero_based'"
        )
    arrays: dict[int, np.ndarray] = {}
    for name, array, kind in found:
        layer = _layer(path, name)
        if layer in arrays:
            raise ValueError(f"{path} has two directions for layer {layer}; one was expected")
        arrays[layer] = _checked(gguf, path, name, array, kind)
    expected = document.get("digests")
    if expected is not None and expected != _digests(arrays):
        raise ArtifactError(
            f"{path}: its directions are not those that were written (their digests differ); "
            "download or copy it again"
        )
    scales = {int(i): float(s) for i, s in document.get("scales", {}).items()}
    metadata = document.get("metadata") or {"imported_from": "gguf", "model_hint": hint}
    return from_directions(arrays, str(path), layer_convention, scales, metadata)


def _document(path: Path, text: str, mark: str) -> dict[str, Any]:
    """What a file of this package says of itself; empty for one of another program."""
    if not text and not mark:
        return {}
    document = load_json(text)
    checked_field(document, "scales", by_name(NUMBER), f"{path}, {_DOCUMENT}")
    checked_field(document, "metadata", OBJECT, f"{path}, {_DOCUMENT}")
    new = "digests" in document
    if (mark and mark != _mark(text)) or bool(mark) != new:
        raise ValueError(f"{_DOCUMENT} was changed")
    if new:
        checked_field(document, "digests", by_name(TEXT), f"{path}, {_DOCUMENT}")
        if set(document["scales"]) != set(document["digests"]):
            raise ValueError("scales and directions are not of the same layers")
    return document


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digests(arrays: dict[int, np.ndarray]) -> dict[str, str]:
    return {str(layer): digest(torch.from_numpy(array)) for layer, array in arrays.items()}


def _write(gguf, path: Path, arrays, vectors: SteeringVectors, strength: float, hint: str) -> None:
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        # As repeng and llama.cpp's generator count: the directions, not the model's layers.
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(arrays))
        document = {
            "scales": {str(i): s for i, s in vectors.scales.items()},
            "strength": strength,
            "metadata": {"versions": package_versions(), **vectors.metadata},
            "digests": _digests(arrays),
        }
        text = to_json(document)
        writer.add_string(_MARK, _mark(text))
        writer.add_string(_DOCUMENT, text)
        for layer, array in arrays.items():
            writer.add_tensor(f"direction.{layer}", array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _layer(path: Path, name: str) -> int:
    start, _, number = name.partition(".")
    if start != "direction" or not number.isdecimal():
        raise ValueError(f"{path}: tensor {name!r} is no direction.N; this is no control vector")
    return int(number)


def _checked(gguf: Any, path: Path, name: str, array: np.ndarray, kind: Any) -> np.ndarray:
    types = gguf.GGMLQuantizationType
    if kind not in (types.F16, types.F32, types.F64):
        raise ValueError(
            f"{path}: tensor {name!r} is stored as {kind.name}, expected floating point (F32)"
        )
    if array.ndim != 1:
        raise ValueError(f"{path}: tensor {name!r} has shape {array.shape}, expected one dimension")
    return array


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    if field is None or not field.types or field.types[0].name != "STRING":
        return ""
    return bytes(field.parts[field.data[0]]).decode("utf-8")


def model_family(vectors: SteeringVectors) -> str:
    """The family by the name of the target's class: LlamaForCausalLM is llama."""
    name = model_of(vectors.metadata, "target").get("architecture") or "unknown"
    for ending in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"):
        name = name.removesuffix(ending)
    return name.lower() or "unknown"


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError(
            "GGUF files need the gguf package: pip install 'expertsteer[export]'"
        ) from None
    return gguf
