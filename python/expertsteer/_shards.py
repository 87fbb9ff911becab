"""A capture in shards: which examples lie in which file, and which files are there.

A folder holds ``capture.json``, the manifest, and ``states-00000.safetensors`` and so on. Shard k
holds the examples ``k * size`` to ``(k + 1) * size`` and nothing tells which process wrote it, so
any number of processes can go on where others stopped. A shard has its name only once it is
whole, and carries the number of the capture it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ._files import FORMAT_VERSION, ArtifactError, _replacing, parsing, read_json, to_json
from ._identity import differences
from .stored import StoredStates

KIND = "capture"
MANIFEST = f"{KIND}.json"
_LOCK = ".lock"


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
        for name in ("layers", "position", "max_length", "dtype", "tokens"):
            if getattr(self, name) != getattr(other, name):
                told.append("tokenizer (token ids)" if name == "tokens" else name)
                there.append(getattr(self, name))
                asked.append(getattr(other, name))
        if told:
            listed = "".join(
                f"\n  {name}: {_short(a)} there, {_short(b)} asked for"
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
        header = read_json(Path(folder, MANIFEST), KIND)
        with parsing(folder, KIND):
            known = {name: header[name] for name in Manifest.__dataclass_fields__}
            manifest = Manifest(**known | {"layers": tuple(header["layers"])})
            if min(manifest.shard_examples, manifest.examples, manifest.width) < 1:
                raise ValueError("shard_examples, examples and width must be positive")
            return cls(folder, manifest)

    def write_manifest(self) -> None:
        document = {"format": f"expertsteer.{KIND}", "format_version": FORMAT_VERSION}
        with _replacing(self.folder / MANIFEST, durable=True) as temporary:
            temporary.write_text(to_json(document | asdict(self.manifest)) + "\n", "utf-8")

    def path(self, shard: int) -> Path:
        return self.folder / f"states-{shard:05d}.safetensors"

    def _mark(self, shard: int) -> str:
        return f"{self.manifest.number}/{shard}"

    def write(self, shard: int, states: Tensor, labels: Tensor, keys: Tensor, pairs: Tensor):
        """``states [L, n, D]`` and three ``[n]`` int64; the name appears when all is on disk.

        Raises:
            ArtifactError: the disk is full, or the folder cannot be written.
        """
        tensors = {"states": states, "labels": labels, "keys": keys, "pairs": pairs}
        try:
            with _replacing(self.path(shard), durable=True) as temporary:
                save_file(tensors, temporary, metadata={"capture": self._mark(shard)})
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{self.path(shard)} cannot be written: {error}; make room or mend the folder's "
                "permissions, and run the same again: it goes on from here"
            ) from error

    def missing(self) -> list[int]:
        """The shards that are not there.

        Raises:
            ArtifactError: a file that has the name of a shard and is none of this capture.
        """
        return [shard for shard in range(self.manifest.shards) if not self._there(shard)]

    def _there(self, shard: int) -> bool:
        path = self.path(shard)
        if not path.is_file():
            return False
        wanted = (len(self.manifest.layers), self.manifest.count(shard), self.manifest.width)
        try:
            with safe_open(path, "pt") as stream:
                about = stream.metadata() or {}
                shape = tuple(stream.get_slice("states").get_shape())
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"{path} is damaged ({error}); delete it and capture again, which makes it anew"
            ) from error
        if about.get("capture") != self._mark(shard):
            raise ArtifactError(
                f"{path} belongs to another capture than {MANIFEST} beside it; delete it and "
                "capture again, which makes it anew"
            )
        if shape != wanted:
            raise ArtifactError(f"{path} holds states {shape}, expected {wanted}; delete it")
        return True

    def stored(self) -> StoredStates:
        """Everything, as one.

        Raises:
            ArtifactError: shards that are missing or damaged.
        """
        missing, manifest = self.missing(), self.manifest
        if missing:
            raise ArtifactError(
                f"folder {str(self.folder)!r} holds {manifest.shards - len(missing)} of "
                f"{manifest.shards} shards (the first one missing is {missing[0]}); run the same "
                "capture again, it goes on where it stopped"
            )
        shards = range(manifest.shards)
        return StoredStates(
            paths=tuple(map(self.path, shards)),
            counts=tuple(map(manifest.count, shards)),
            shape=manifest.shape,
            dtype=getattr(torch, manifest.dtype),
            layers=manifest.layers,
            position=manifest.position,
            model=manifest.model | {"hidden_size": manifest.width},
        )

    def clear_temporary(self) -> None:
        """Remove what killed processes left; only under `writing`, where no other one writes."""
        for pattern in (".states-*.tmp", f".{MANIFEST}.*.tmp"):
            for path in self.folder.glob(pattern):
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


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
