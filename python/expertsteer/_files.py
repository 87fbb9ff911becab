"""Read and write an artefact: tensors in safetensors, everything else in json, nothing pickled.

A file is written under a temporary name and renamed, and the tensor file carries a copy of the
json, so a process killed at any moment leaves either the old artefact or the new one. The json
carries the digest of the tensor file: a truncated or foreign file is refused instead of half-read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

FORMAT_VERSION = 1


class ArtifactError(ValueError):
    """A folder does not hold the artefact it should: missing, truncated, foreign or mismatched."""


def write_artifact(
    folder: str | os.PathLike, kind: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> Path:
    """Write ``kind.safetensors`` and ``kind.json`` into ``folder`` (made if absent).

    Raises:
        ArtifactError: values that json cannot hold, or a folder that cannot be written; what was
            there before stays.
    """
    folder = Path(folder)
    document = {"format": f"expertsteer.{kind}", "format_version": FORMAT_VERSION} | header
    embedded = {"document": to_json(document)}
    # Cloned: safetensors refuses tensors that share memory, such as one vector at two layers.
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing(folder / f"{kind}.safetensors") as temporary:
            save_file(owned, temporary, metadata=embedded)
            digest = _sha256(temporary)
        with _replacing(folder / f"{kind}.json") as temporary:
            temporary.write_text(to_json(document | {"sha256": digest}) + "\n", "utf-8")
    except OSError as error:
        raise ArtifactError(f"folder {str(folder)!r} cannot be written: {error}") from error
    return folder


def read_artifact(
    folder: str | os.PathLike, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read back what `write_artifact` wrote; raises `ArtifactError` for anything else."""
    tensor_path, header = checked_artifact(folder, kind)
    try:
        return load_file(tensor_path), header
    except SafetensorError as error:
        raise _unreadable(tensor_path, error) from error


def read_layer(tensor_path: Path, name: str, index: int) -> torch.Tensor:
    """``tensor[index]`` of a checked file; the file is mapped for no longer than that takes."""
    try:
        with safe_open(tensor_path, "pt") as stream:
            return stream.get_slice(name)[index].clone()
    except (SafetensorError, OSError) as error:
        raise _unreadable(tensor_path, error) from error


def _unreadable(tensor_path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{tensor_path} is not a readable safetensors file: {error}")


def checked_artifact(folder: str | os.PathLike, kind: str) -> tuple[Path, dict[str, Any]]:
    """The tensor file of an artefact, whole by its digest but unread, and the json beside it."""
    folder = Path(folder)
    header_path, tensor_path = folder / f"{kind}.json", folder / f"{kind}.safetensors"
    for path in (header_path, tensor_path):
        if not path.is_file():
            raise ArtifactError(f"folder {str(folder)!r} holds no {kind}: {path.name} is missing")
    header = read_json(header_path, kind)
    if _sha256(tensor_path) != header.get("sha256"):
        header = _embedded_header(tensor_path)
        require_kind(header, kind, tensor_path)
    return tensor_path, header


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """The json of an artefact; raises `ArtifactError` for a damaged one or another kind."""
    try:
        header = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable json: {error}") from error
    require_kind(header, kind, path)
    return header


@contextmanager
def parsing(folder: str | os.PathLike, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while contents are interpreted into `ArtifactError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"folder {str(folder)!r} holds a damaged or foreign {kind}: "
            f"{type(error).__name__}: {error}"
        ) from error


def to_json(document: dict[str, Any]) -> str:
    """Strict json: NaN and infinity are refused, since other readers cannot parse them."""
    try:
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"metadata must hold json values (finite numbers, strings, lists, dicts): {error}"
        ) from error


def _embedded_header(tensor_path: Path) -> dict[str, Any]:
    """The copy of the json inside the tensor file: newer than the json if a save was cut short."""
    try:
        with safe_open(tensor_path, "pt") as stream:
            return json.loads((stream.metadata() or {})["document"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{tensor_path} is truncated or not the file that belongs here (digest mismatch); "
            "copy both files again"
        ) from error


def require_kind(header: Any, kind: str, path: Path) -> None:
    found = header.get("format") if isinstance(header, dict) else type(header).__name__
    if found != f"expertsteer.{kind}":
        raise ArtifactError(f"{path} has format {found!r}, expected 'expertsteer.{kind}'")
    if header.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {header.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}; install the release that wrote it"
        )


def _sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary sibling of ``path``, renamed over it on success and removed on failure.

    ``durable``: its contents reach the disk before its name does, so that a machine that stops
    leaves no named file without contents.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; an artefact is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
