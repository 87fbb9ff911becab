"""A capture in shards: which examples lie in which file, and which files are there.

A folder holds ``capture.json``, the manifest, and ``states-00000.safetensors`` and so on. Shard k
holds the examples ``k * size`` to ``(k + 1) * size`` and nothing tells which process wrote it, so
any number of processes can go on where others stopped. A shard has its name only once it is
whole, and carries the number of the capture it belongs to and the digests of its contents: one for
every layer of its states, one each for labels, keys and pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ._digests import digests
from ._files import FORMAT_VERSION, ArtifactError, require_kind, to_json
from ._identity import differences
from ._paths import local_path
from ._reading import (
    OBJECT,
    TEXT,
    WHOLE,
    checked_field,
    either,
    listed,
    load_json,
    optional,
    read_bytes,
    reading,
    short,
)
from ._writing import replacing
from .stored import StoredStates, shape_and_type

KIND = "capture"
MANIFEST = f"{KIND}.json"
_LOCK = ".lock"
MOST_SHARDS = 1_000_000  # more than any disk has room for
_NAME = re.compile(r"states-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards is a capture of; equal for all processes that write it.

    Attributes:
        model: `identity` of the model.
        contrast: ``sha256`` (`ContrastSet.digest`), ``examples``, ``positive`` and ``name``.
        layers, position, max_length: as asked of `capture_to`.
        dtype: of the states, such as ``"bfloat16"``; width: of the states.
        tokens: sha256 over the token ids of the first examples: tells tokenizers apart.
        shard_examples: examples in a shard, fewer in the last.
    """

    model: dict[str, Any]
    contrast: dict[str, Any]
    layers: tuple[int, ...]
    position: str | int
    max_length: int | None
    dtype: str
    width: int
    tokens: str
    shard_examples: int

    @property
    def examples(self) -> int:
        return self.contrast["examples"]

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard_examples)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.layers), self.examples, self.width

    def count(self, shard: int) -> int:
        """How many examples a shard holds."""
        return min(self.shard_examples, self.examples - shard * self.shard_examples)

    @property
    def number(self) -> str:
        """Stands in every shard, so that one from another folder is noticed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def require_same(self, other: Manifest, folder: Path) -> None:
        """Refuse to go on with ``other`` in a folder that holds this capture.

        Raises:
            ArtifactError: another model, contrast set, tokenizer, layers, position or type.
        """
        told = [f"model ({name})" for name in differences(self.model, other.model)]
        there = [self.model.get(n[7:-1]) for n in told]
        asked = [other.model.get(n[7:-1]) for n in told]
        if self.contrast["sha256"] != other.contrast["sha256"]:
            told.append("contrast set")
            there.append(self.contrast["sha256"][:12])
            asked.append(other.contrast["sha256"][:12])
        for name in ("layers", "position", "max_length", "dtype", "width", "tokens"):
            if getattr(self, name) != getattr(other, name):
                told.append("tokenizer (token ids)" if name == "tokens" else name)
                there.append(getattr(self, name))
                asked.append(getattr(other, name))
        if told:
            listed = "".join(
                f"\n  {name}: {short(a)} there, {short(b)} asked for"
                for name, a, b in zip(told, there, asked)
            )
            raise ArtifactError(
                f"folder {str(folder)!r} holds another capture; choose another folder, or repeat "
                f"the arguments it was begun with:{listed}"
            )


class Shards:
    """The files of one capture in one folder."""

    def __init__(self, folder: str | os.PathLike, manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Shards:
        """The capture that a folder holds, complete or not."""
        path = local_path(folder, "folder") / MANIFEST
        with reading(path, "json file"):
            header = load_json(read_bytes(path, "json file"))
        require_kind(header, KIND, path)
        return cls(path.parent, _manifest(header, path))

    def write_manifest(self) -> None:
        document = {"format": f"expertsteer.{KIND}", "format_version": FORMAT_VERSION}
        document |= asdict(self.manifest) | {"number": self.manifest.number}
        with replacing(self.folder / MANIFEST, durable=True) as temporary:
            temporary.write_text(to_json(document) + "\n", "utf-8")

    def path(self, shard: int) -> Path:
        return self.folder / f"states-{shard:05d}.safetensors"

    def _mark(self, shard: int) -> str:
        return f"{self.manifest.number}/{shard}"

    def write(self, shard: int, states: Tensor, labels: Tensor, keys: Tensor, pairs: Tensor):
        """``states [L, n, D]`` and three ``[n]`` int64; the name appears when all is on disk.

        Raises:
            ArtifactError: the disk is full, or the folder cannot be written; the same capture goes
                on from there when it is run again.
        """
        tensors = {"states": states, "labels": labels, "keys": keys, "pairs": pairs}
        about = {
            "capture": self._mark(shard),
            "digests": json.dumps(digests(tensors, by_layer=["states"])),
        }
        then = "run the same again: it goes on from here"
        with replacing(self.path(shard), durable=True, then=then) as temporary:
            save_file(tensors, temporary, metadata=about)

    def missing(self) -> list[int]:
        """The shards that are not there.

        Raises:
            ArtifactError: a file that has the name of a shard and is none of this capture.
        """
        there = self._there()
        for shard in sorted(there):
            self._checked(shard)
        return [shard for shard in range(self.manifest.shards) if shard not in there]

    def begun(self) -> bool:
        """Whether there is any shard: a manifest alone binds nobody."""
        return bool(self._there())

    def _there(self) -> set[int]:
        with reading(self.folder, "folder"), os.scandir(self.folder) as entries:
            named = [_NAME.fullmatch(entry.name) for entry in entries]
        found = {int(match[1]) for match in named if match}
        return {shard for shard in found if shard < self.manifest.shards}

    def _checked(self, shard: int) -> dict[str, Any] | None:
        """The digests of a shard, after a look whether it is the one that belongs here."""
        path = self.path(shard)
        wanted = (len(self.manifest.layers), self.manifest.count(shard), self.manifest.width)
        advice = "delete it and capture again, which makes it anew"
        with reading(path, "shard", advice):
            with open(path, "rb"):
                pass  # a file that may not be read is told from one that is damaged
            with safe_open(path, "pt") as stream:
                about = stream.metadata() or {}
            shape, dtype = shape_and_type(path)
            expected = json.loads(about["digests"]) if "digests" in about else None
        if about.get("capture") != self._mark(shard):
            raise ArtifactError(
                f"{path} belongs to another capture than {MANIFEST} beside it; {advice}"
            )
        found, asked = (shape, dtype), (wanted, getattr(torch, self.manifest.dtype))
        if found != asked:
            raise ArtifactError(f"{path} holds states {found}, expected {asked}; {advice}")
        if expected is not None:
            checked_field(expected, "states", listed(TEXT, wanted[0]), path)
            for name in _COLUMNS:
                checked_field(expected, name, TEXT, path)
        return expected

    def stored(self) -> StoredStates:
        """Everything, as one.

        Raises:
            ArtifactError: shards that are missing or damaged.
        """
        manifest = self.manifest
        there = self._there()
        missing = manifest.shards - len(there)
        if missing:
            first = next(shard for shard in range(manifest.shards) if shard not in there)
            raise ArtifactError(
                f"folder {str(self.folder)!r} holds {manifest.shards - missing} of "
                f"{manifest.shards} shards (the first one missing is {first}); run the same "
                "capture again, it goes on where it stopped"
            )
        shards = range(manifest.shards)
        known = tuple(map(self._checked, shards))
        if any(digest is None for digest in known):
            warnings.warn(
                f"{self.folder}: {sum(d is None for d in known)} of {manifest.shards} shards were "
                "written before digests were kept in them, and are read unchecked; delete and "
                "capture them again to have them checked",
                stacklevel=3,
            )
        return StoredStates(
            paths=tuple(map(self.path, shards)),
            counts=tuple(map(manifest.count, shards)),
            shape=manifest.shape,
            dtype=getattr(torch, manifest.dtype),
            layers=manifest.layers,
            position=manifest.position,
            model=manifest.model | {"hidden_size": manifest.width},
            digests=known,
        )

    def clear_temporary(self) -> None:
        """Remove what killed processes left; only under `writing`, where no other one writes."""
        for pattern in (".states-*.tmp", f".{MANIFEST}.*.tmp"):
            for path in self.folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:  # of a release before 0.2
                    path.unlink(missing_ok=True)


_COLUMNS = ("labels", "keys", "pairs")


def _manifest(header: dict[str, Any], path: Path) -> Manifest:
    """The manifest of a document, every field checked."""
    contrast = checked_field(header, "contrast", OBJECT, path)
    for name, kind in (("sha256", TEXT), ("examples", WHOLE)):
        checked_field(contrast, name, kind, f"{path}, contrast")
    kinds = {
        "model": OBJECT,
        "contrast": OBJECT,
        "layers": listed(WHOLE),
        "position": either(TEXT, WHOLE),
        "max_length": optional(WHOLE),
        "dtype": TEXT,
        "width": WHOLE,
        "tokens": TEXT,
        "shard_examples": WHOLE,
    }
    known = {name: checked_field(header, name, kind, path) for name, kind in kinds.items()}
    manifest = Manifest(**known | {"layers": tuple(known["layers"])})
    if min(manifest.shard_examples, manifest.examples, manifest.width, len(manifest.layers)) < 1:
        raise ArtifactError(
            f"{path}: shard_examples, examples, width and the number of layers must be positive"
        )
    if manifest.shards > MOST_SHARDS:
        raise ArtifactError(
            f"{path} names {manifest.examples:,} examples in {manifest.shards:,} shards; at most "
            f"{MOST_SHARDS:,} shards are read"
        )
    dtype = getattr(torch, manifest.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArtifactError(
            f"{path}: field 'dtype' must be a floating type, came {known['dtype']!r}"
        )
    if header.get("number", manifest.number) != manifest.number:
        raise ArtifactError(
            f"{path} was changed: its number is not that of its contents; copy it again, or delete "
            "it and capture again"
        )
    return manifest


@contextmanager
def writing(folder: Path, alone: bool) -> Iterator[None]:
    """The right to write into a folder; the system takes it back from a process that dies.

    Args:
        alone: take it only if no other process has it; then share it with those of the same run.

    Raises:
        ArtifactError: processes of another run are writing there.
    """
    with open(folder / _LOCK, "a") as stream:
        _lock(stream, exclusive=alone, folder=folder)
        if alone:
            _lock(stream, exclusive=False, folder=folder)
        yield


def _lock(stream, exclusive: bool, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows: nothing keeps two runs apart there
        return
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError as error:
        raise ArtifactError(
            f"folder {str(folder)!r} is being written by another process; wait for it or stop it, "
            "then run this again"
        ) from error
