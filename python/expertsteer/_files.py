"""Read and write an artefact: tensors in safetensors, everything else in json, nothing pickled.

A file is written under a temporary name and renamed, so a killed process leaves either the old
artefact or the new one. The json carries the digest of the tensor file: a truncated or swapped
file is refused instead of half-read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FORMAT_VERSION = 1


class ArtifactError(ValueError):
    """A folder does not hold the artefact it should: missing, truncated, foreign or mismatched."""


def write_artifact(
    folder: str | os.PathLike, kind: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> Path:
    """Write ``kind.safetensors`` and ``kind.json`` into ``folder`` (made if absent)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensor_path = folder / f"{kind}.safetensors"
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with _replacing(tensor_path) as temporary:
        save_file(contiguous, temporary)
        digest = _sha256(temporary)
    document = {"format": f"expertsteer.{kind}", "format_version": FORMAT_VERSION}
    document |= {"sha256": digest} | header
    with _replacing(folder / f"{kind}.json") as temporary:
        Path(temporary).write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
    return folder


def read_artifact(
    folder: str | os.PathLike, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read back what `write_artifact` wrote; raises `ArtifactError` for anything else."""
    folder = Path(folder)
    header_path, tensor_path = folder / f"{kind}.json", folder / f"{kind}.safetensors"
    for path in (header_path, tensor_path):
        if not path.is_file():
            raise ArtifactError(f"folder {str(folder)!r} holds no {kind}: {path.name} is missing")
    try:
        header = json.loads(header_path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{header_path} is not readable json: {error}") from error
    found = header.get("format") if isinstance(header, dict) else type(header).__name__
    if found != f"expertsteer.{kind}":
        raise ArtifactError(f"{header_path} has format {found!r}, expected 'expertsteer.{kind}'")
    if header.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{header_path} has format_version {header.get('format_version')!r}, this release "
            f"reads {FORMAT_VERSION}; install the release that wrote it"
        )
    if _sha256(tensor_path) != header.get("sha256"):
        raise ArtifactError(
            f"{tensor_path} is truncated or not the file that {header_path.name} describes "
            "(digest mismatch); copy both files again"
        )
    try:
        return load_file(tensor_path), header
    except SafetensorError as error:
        raise ArtifactError(f"{tensor_path} is not a readable safetensors file: {error}") from error


def _sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class _replacing:
    """A temporary sibling of ``path``, renamed over it on success and removed on failure."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> str:
        handle, self.temporary = tempfile.mkstemp(
            dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp"
        )
        os.close(handle)
        return self.temporary

    def __exit__(self, error_type, error, trace) -> None:
        if error_type is not None:
            os.unlink(self.temporary)
            return
        # mkstemp makes private files; an artefact is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(self.temporary, 0o666 & ~umask)
        os.replace(self.temporary, self.path)
