"""Read and write an artefact: tensors in safetensors, everything else in json, nothing pickled.

``kind.safetensors`` is the artefact: its metadata hold the whole document, with a digest of every
tensor, the document's own digest, and the digest of the json file that it takes the place of.
``kind.json`` beside it is the same document for people and other programs. So

- a changed byte in either file, or two files of different saves, is an error;
- a process killed between the two leaves the new artefact (the older json is the one that the
  tensor file says it replaces), killed before that the old one;
- what is checked is what is loaded: the bytes are read once, and a reader beside a writer gets
  one save whole.

Artefacts of earlier versions have no digests inside, and a digest of the whole tensor file in the
json. They are read, and checked as far as that goes; saving them again adds the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from .digests import digests, require_equal
from .paths import local_path
from .reading import OBJECT, ArtifactError, checked_field, load_json, optional, read_bytes, reading
from .telling import tell
from .writing import replacing, saving_into, write_text

FORMAT_VERSION = 1
_TRIES = 100  # of a reader beside writers that never rest
_DOCUMENT, _DIGEST, _REPLACES = "document", "document_digest", "replaces"

Read = TypeVar("Read")


class Opened(NamedTuple):
    """A tensor file that was found whole, without its tensors.

    Attributes:
        path: of the file; document: all that is no tensor.
        digests: what each tensor must have; ``None`` in old files, whose bytes were checked.
        signature: see `signature`, when that was checked.
    """

    path: Path
    document: dict[str, Any]
    digests: dict[str, Any] | None
    signature: tuple[int, ...]


def write_artifact(
    folder: str | os.PathLike,
    kind: str,
    tensors: dict[str, torch.Tensor],
    header: dict[str, Any],
    by_layer: Collection[str] = (),
) -> Path:
    """Write ``kind.safetensors`` and ``kind.json`` into ``folder`` (made if absent).

    Args:
        by_layer: tensors that are read a layer at a time, and so have a digest for each.

    Raises:
        ArtifactError: values that json cannot hold, or a folder that cannot be written; what was
            there before stays.
    """
    folder = local_path(folder, "folder")
    # Cloned: safetensors refuses tensors that share memory, such as one vector at two layers.
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    document = {"format": f"expertsteer.{kind}", "format_version": FORMAT_VERSION} | header
    document |= {"digests": digests(owned, by_layer)}
    text = _readable(to_json(document))
    header_path, tensor_path = folder / f"{kind}.json", folder / f"{kind}.safetensors"
    with saving_into(folder):
        metadata = {_DOCUMENT: text, _DIGEST: _digest(text.encode())}
        if header_path.exists():
            metadata[_REPLACES] = _digest(header_path.read_bytes())
        with replacing(tensor_path) as temporary:
            save_file(owned, temporary, metadata=metadata)
        write_text(header_path, text + "\n")
    return folder


def read_artifact(
    folder: str | os.PathLike, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read back what `write_artifact` wrote; raises `ArtifactError` for anything else."""
    header_path, tensor_path = _paths(folder, kind)

    def attempt() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        header = read_bytes(header_path, "json file") if header_path.is_file() else None
        data = read_bytes(tensor_path, _SAFETENSORS)
        with reading(tensor_path, _SAFETENSORS):
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        document = _agreed(
            tensor_path, kind, metadata, header, lambda: hashlib.sha256(data).hexdigest()
        )
        _require_tensors(tensor_path, document, tensors)
        return tensors, document

    return _settled((header_path, tensor_path), attempt)


def open_artifact(folder: str | os.PathLike, kind: str) -> Opened:
    """The same without its tensors: they are checked when they are read, by these digests.

    A file without digests is read and checked now, as a whole.
    """
    header_path, tensor_path = _paths(folder, kind)

    def attempt() -> Opened:
        header = read_bytes(header_path, "json file") if header_path.is_file() else None
        seen = signature(tensor_path)
        with reading(tensor_path, _SAFETENSORS), safe_open(tensor_path, "pt") as stream:
            metadata, names = stream.metadata() or {}, set(stream.keys())
        document = _agreed(tensor_path, kind, metadata, header, lambda: _sha256(tensor_path))
        expected = checked_field(document, "digests", optional(OBJECT), tensor_path, default=None)
        if expected is not None and set(expected) != names:
            raise ArtifactError(_other_tensors(tensor_path, expected, names))
        if signature(tensor_path) != seen:
            raise ArtifactError(f"{tensor_path} was replaced while it was opened; open it again")
        return Opened(tensor_path, document, expected, seen)

    return _settled((header_path, tensor_path), attempt)


def signature(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is replaced or written to."""
    with reading(path, "file"):
        status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_SAFETENSORS = "safetensors file"


def _paths(folder: str | os.PathLike, kind: str) -> tuple[Path, Path]:
    folder = local_path(folder, "folder")
    header_path, tensor_path = folder / f"{kind}.json", folder / f"{kind}.safetensors"
    with reading(folder, "folder"):  # which it may not be allowed to look into
        there = tensor_path.is_file()
    if not there:
        raise ArtifactError(
            f"folder {str(folder)!r} holds no {kind}: {tensor_path.name} is missing"
        )
    return header_path, tensor_path


def _settled(paths: tuple[Path, ...], attempt: Callable[[], Read]) -> Read:
    """``attempt`` again for as long as what it failed on was being replaced."""

    def seen() -> list[Any]:
        return [signature(path) if path.exists() else None for path in paths]

    for _ in range(_TRIES):
        before = seen()
        try:
            return attempt()
        except ArtifactError:
            if seen() == before:
                raise
    return attempt()


def _agreed(
    path: Path, kind: str, metadata: dict[str, str], header: bytes | None, sha256: Callable[[], str]
) -> dict[str, Any]:
    """The document of an artefact, after its file and the json beside it said the same."""
    text, beside = metadata.get(_DOCUMENT), path.with_suffix(".json")
    if _DIGEST in metadata:
        if text is None or _digest(text.encode()) != metadata[_DIGEST]:
            raise ArtifactError(f"{path} is damaged: its document was changed; copy it again")
        document = _parsed(path, kind, text)
        # Without json, or with the one that this save replaces: it was cut short behind this file.
        if header is not None and _digest(header) != metadata.get(_REPLACES):
            _require_same(path, text, _parsed(beside, kind, header))
        return document
    if header is None:
        if text is None:
            raise ArtifactError(f"{path} holds no document, and {beside.name} is missing")
        tell(
            f"{path} was written before digests were kept in it, and {beside.name} is missing: "
            "nothing tells whether it is whole; save it again to have that"
        )
        return _parsed(path, kind, text)
    document = _parsed(beside, kind, header)
    if document.get("sha256") != sha256():
        raise ArtifactError(
            f"{path} is truncated, or not the file that belongs to {beside.name} (digest "
            f"mismatch); copy both files again. If a save of an earlier version was cut short "
            f"here, delete {beside.name}: {path.name} is then read as it is"
        )
    document.pop("sha256")
    if text is not None:
        _require_same(path, text, document)
    return document


def _readable(text: str) -> str:
    """What would be refused when it is read is not written: 1 and "1" are one name in json."""
    try:
        load_json(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"metadata cannot be read back from json: {error}") from error
    return text


def _parsed(path: Path, kind: str, text: str | bytes) -> dict[str, Any]:
    with reading(path, "json file"):
        document = load_json(text)
    require_kind(document, kind, path)
    return document


def _require_same(path: Path, text: str, beside: dict[str, Any]) -> None:
    if to_json(beside) == to_json(load_json(text)):
        return
    inside = load_json(text)
    differ = [
        name
        for name in {**inside, **beside}
        if to_json(inside.get(name)) != to_json(beside.get(name))
    ]
    name = path.with_suffix(".json").name
    raise ArtifactError(
        f"{path} and {name} beside it disagree on {', '.join(differ) or 'the order of fields'}: "
        "one of them was changed, or they are of different saves; copy both again, or delete "
        f"{name} to take the tensor file with the document inside it"
    )


def _require_tensors(
    path: Path, document: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    if "digests" not in document:  # an old file, checked as a whole
        return
    expected = checked_field(document, "digests", OBJECT, path)
    if set(expected) != set(tensors):
        raise ArtifactError(_other_tensors(path, expected, tensors))
    for name, tensor in tensors.items():
        require_equal(path, name, tensor, expected[name])


def _other_tensors(path: Path, expected: Collection[str], found: Collection[str]) -> str:
    return (
        f"{path} holds the tensors {sorted(found)}, its document names {sorted(expected)}; copy it "
        "again"
    )


def parsing(folder: str | os.PathLike, kind: str) -> AbstractContextManager[None]:
    """`reading` for what is interpreted after it was read."""
    return reading(f"folder {str(folder)!r}", kind)


def to_json(document: Any) -> str:
    """Strict json: NaN and infinity are refused, since other readers cannot parse them."""
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")  # half a surrogate pair cannot be written
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"metadata must hold json values (finite numbers, strings, lists, dicts): {error}"
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


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _sha256(path: str | os.PathLike) -> str:
    with reading(path, "file"), open(path, "rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
