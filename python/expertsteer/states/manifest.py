"""What a folder of shards is a capture of: the manifest, and its checks when it is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.identity import differences
from ..support.numbers import count
from ..support.reading import (
    OBJECT,
    TEXT,
    WHOLE,
    ArtifactError,
    checked_field,
    checked_layers,
    either,
    optional,
    short,
)

MOST_SHARDS = 1_000_000  # more than any disk has room for


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


def read_manifest(header: dict[str, Any], path: Path) -> Manifest:
    """The manifest of a document, every field checked."""
    contrast = checked_field(header, "contrast", OBJECT, path)
    for name, kind in (("sha256", TEXT), ("examples", WHOLE)):
        checked_field(contrast, name, kind, f"{path}, contrast")
    kinds = {
        "model": OBJECT,
        "contrast": OBJECT,
        "position": either(TEXT, WHOLE),
        "max_length": optional(WHOLE),
        "dtype": TEXT,
        "width": WHOLE,
        "tokens": TEXT,
        "shard_examples": WHOLE,
    }
    known = {name: checked_field(header, name, kind, path) for name, kind in kinds.items()}
    manifest = Manifest(**known | {"layers": checked_layers(header, path)})
    if min(manifest.shard_examples, manifest.examples, manifest.width) < 1:
        raise ArtifactError(f"{path}: shard_examples, examples and width must be positive")
    if manifest.shards > MOST_SHARDS:
        raise ArtifactError(
            f"{path} names {count(manifest.examples)} examples in {count(manifest.shards)} shards; "
            f"at most {count(MOST_SHARDS)} shards are read"
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
