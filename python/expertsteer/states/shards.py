"""A capture in shards: which examples lie in which file, and which files are there.

A folder holds ``capture.json``, the manifest, and ``states-00000.safetensors`` and so on. Shard k
holds the examples ``k * size`` to ``(k + 1) * size`` and nothing tells which process wrote it, so
any number of processes can go on where others stopped. A shard has its name only once it is
whole, and carries the number of the capture it belongs to and the digests of its contents: one for
every layer of its states, one each for labels, keys and pairs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..support.artifact_files import FORMAT_VERSION, require_kind, to_json
from ..support.digests import digests
from ..support.paths import local_path
from ..support.reading import (
    TEXT,
    ArtifactError,
    checked_field,
    listed,
    load_json,
    read_bytes,
    reading,
)
from ..support.telling import tell
from ..support.writing import replacing, write_text
from .manifest import Manifest, read_manifest
from .tensor_files import COLUMNS, StateFiles, shape_and_type

KIND = "capture"
MANIFEST = f"{KIND}.json"
_LOCK = ".lock"
_NAME = re.compile(r"states-(\d{5,})\.safetensors")


class Shards:
    """The files of one capture in one folder."""

    def __init__(self, folder: str | os.PathLike, manifest: Manifest, with_digests: bool = True):
        """``with_digests``: whether all shards must have them; those of old manifests may lack."""
        self.folder, self.manifest, self.with_digests = Path(folder), manifest, with_digests

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Shards:
        """The capture that a folder holds, complete or not."""
        path = local_path(folder, "folder") / MANIFEST
        with reading(path, "json file"):
            header = load_json(read_bytes(path, "json file"))
        require_kind(header, KIND, path)
        return cls(path.parent, read_manifest(header, path), "number" in header)

    def write_manifest(self) -> None:
        document = {"format": f"expertsteer.{KIND}", "format_version": FORMAT_VERSION}
        document |= asdict(self.manifest) | {"number": self.manifest.number}
        write_text(self.folder / MANIFEST, to_json(document) + "\n", durable=True)

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
        # `clear_temporary` has tidied up for all of them.
        with replacing(self.path(shard), durable=True, then=then, tidy=False) as temporary:
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
                shape, dtype = shape_and_type(stream)
            expected = json.loads(about["digests"]) if "digests" in about else None
        if about.get("capture") != self._mark(shard):
            raise ArtifactError(
                f"{path} belongs to another capture than {MANIFEST} beside it; {advice}"
            )
        found, asked = (shape, dtype), (wanted, getattr(torch, self.manifest.dtype))
        if found != asked:
            raise ArtifactError(f"{path} holds states {found}, expected {asked}; {advice}")
        if expected is None and self.with_digests:
            raise ArtifactError(
                f"{path} lacks the digests of its contents: it was changed; {advice}"
            )
        if expected is not None:
            checked_field(expected, "states", listed(TEXT, wanted[0]), path)
            for name in COLUMNS:
                checked_field(expected, name, TEXT, path)
        return expected

    def files(self) -> StateFiles:
        """All of them, to be read as one.

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
            tell(
                f"{self.folder}: {sum(d is None for d in known)} of {manifest.shards} shards were "
                "written before digests were kept in them, and are read unchecked; delete and "
                "capture them again to have them checked"
            )
        return StateFiles(tuple(map(self.path, shards)), tuple(map(manifest.count, shards)), known)

    def clear_temporary(self) -> None:
        """Remove what killed processes left; only under `writing`, where no other one writes."""
        for pattern in (".states-*.tmp", f".{MANIFEST}.*.tmp"):
            for path in self.folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:  # older processes left files
                    path.unlink(missing_ok=True)


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
