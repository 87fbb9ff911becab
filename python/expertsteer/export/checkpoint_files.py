"""What the files of an exported checkpoint hold: planned, written, and read back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..folding.conversions import CONVERTED, joint_parts
from ..folding.permanent import OPTIONS
from ..support.artifact_files import to_json
from ..support.reading import ArtifactError
from .source import (
    INDEX,
    SourceCheckpoint,
    disk_name,
    model_without_weights,
    open_source,
    read_json,
)
from .tensor_files import FLOATING, NewTensor, StoredTensor, digest_of, read_header

CARD, BASE_CARD = "README.md", "README.base_model"

Layout = dict[str, dict[str, "StoredTensor | NewTensor"]]


@dataclass(frozen=True)
class Folded:
    """A model without weights, folded.

    Attributes:
        family: the ``model_type`` of the source; config: its configuration, as it was.
        model: with the new biases, and of another family where that carries them.
        biases: names, in ``model``, of the biases that hold a vector.
    """

    family: str
    config: Any
    model: nn.Module
    biases: tuple[str, ...]

    @property
    def converted(self) -> bool:
        return self.family in CONVERTED


def plan(source: SourceCheckpoint, folded: Folded) -> Layout:
    """Which tensors each file of the new checkpoint holds, and where their bytes come from.

    Raises:
        ValueError: names that the stock family does not have, or a weight that is missing.
    """
    state = folded.model.state_dict()
    layout: Layout = {}
    home: dict[str, str] = {}
    for shard, (tensors, _) in source.shards.items():
        layout[shard] = {}
        for name, tensor in tensors.items():
            parts = {name: tensor}
            if folded.converted:
                rows = joint_parts(name, folded.config)
                parts = {part: tensor.rows(*r) for part, r in rows.items()} or parts
                parts = {part: t for part, t in parts.items() if _wanted(source, part, state)}
            layout[shard] |= parts
            home |= dict.fromkeys(parts, shard)
    for name, value in folded.model.named_parameters():
        stored = disk_name(folded.model, name, home)
        if name in folded.biases and stored is not None:
            layout[home[stored]][stored] = NewTensor(value)
        elif name.endswith(".bias") and stored is None:
            weight = _beside(source, folded.model, name, home)
            layout[home[weight]][weight.removesuffix("weight") + "bias"] = NewTensor(value)
    return layout


def _beside(source: SourceCheckpoint, model: nn.Module, bias: str, home: dict[str, str]) -> str:
    """The stored weight that a new bias belongs to."""
    weight = bias.removesuffix("bias") + "weight"
    stored = disk_name(model, weight, home)
    if stored is None:
        raise ValueError(f"model {source.name!r} has no tensor {weight!r} in its files; {RESAVE}")
    dtype = source.tensors[stored].dtype if stored in source.tensors else "F32"
    if dtype not in FLOATING:
        raise ValueError(
            f"model {source.name!r}: tensor {stored!r} is stored as {dtype} (quantised), expected "
            f"one of {sorted(FLOATING)}; {UNQUANTISED}"
        )
    return stored


RESAVE = (
    "load it once with transformers and save_pretrained it, which writes today's names, and export "
    "that folder"
)
UNQUANTISED = "export from the checkpoint that is not quantised, then quantise the exported folder"


def _wanted(source: SourceCheckpoint, name: str, state: dict[str, Any]) -> bool:
    """Whether a tensor goes into a converted checkpoint; a table that is computed does not."""
    if name in state:
        return True
    if name.endswith("rotary_emb.inv_freq"):
        return False
    raise ValueError(
        f"model {source.name!r} stores tensor {name!r}, which its family does not have in "
        f"transformers; {RESAVE}"
    )


def write_index(folder: Path, source: SourceCheckpoint, layout: Layout) -> None:
    """The index of the shards, where the source has one."""
    if not source.index:
        return
    old = sum(t.length for t in source.tensors.values())
    new = sum(t.length for tensors in layout.values() for t in tensors.values())
    metadata = dict(source.index.get("metadata") or {})
    if "total_parameters" in metadata:
        metadata["total_parameters"] += _parameters(layout.values()) - _parameters([source.tensors])
    # What the source says, changed by what was added: tied weights may be counted twice there.
    metadata["total_size"] = int(metadata.get("total_size", old)) + new - old
    names = {name: shard for shard, tensors in layout.items() for name in tensors}
    document = source.index | {"metadata": metadata, "weight_map": dict(sorted(names.items()))}
    (folder / INDEX).write_text(to_json(document) + "\n", "utf-8")


def _parameters(files: Iterable[dict[str, Any]]) -> int:
    return sum(math.prod(tensor.shape) for tensors in files for tensor in tensors.values())


def write_config(folder: Path, source: SourceCheckpoint, folded: Folded) -> None:
    """``config.json``; the tokenizer is told its class where a conversion would change it."""
    if folded.converted:
        folded.model.config.architectures = [type(folded.model).__name__]
        document = json.loads(folded.model.config.to_json_string(use_diff=True))
        # Of this process, not of the checkpoint: releases before 5 would fall back to eager
        # attention when they load it.
        document.pop("_attn_implementation_autoset", None)
        for name in ("dtype", "torch_dtype"):
            document.pop(name, None)
            if name in source.config:
                document[name] = source.config[name]
    else:
        # As it was written, so that nothing is lost that this release of transformers ignores.
        document = dict(source.config)
        if folded.family in OPTIONS:
            document[OPTIONS[folded.family].option] = True
        # Code on the Hub does not know the option, and would be loaded in place of the family.
        document.pop("auto_map", None)
    (folder / "config.json").write_text(to_json(document) + "\n", "utf-8")
    if folded.converted:
        _keep_tokenizer(folder, source)


def _keep_tokenizer(folder: Path, source: SourceCheckpoint) -> None:
    """Another family may have another tokenizer by default: name the class the source gets."""
    path = folder / "tokenizer_config.json"
    document = read_json(path) if path.is_file() else {}
    some = path.is_file() or (folder / "tokenizer.json").is_file()
    if not some or document.get("auto_map"):  # none at all, or its own code decides
        return
    try:
        before = _tokenizer(source.folder)
    except Exception as error:  # whatever a tokenizer of somebody else's may raise
        if document.get("tokenizer_class"):
            return
        raise ValueError(
            f"model {source.name!r}: its tokenizer_config.json names no tokenizer_class, and the "
            f"tokenizer cannot be loaded to find it ({type(error).__name__}: {error}); add "
            "tokenizer_class to that file"
        ) from error
    if document.get("tokenizer_class") != type(before).__name__:
        document["tokenizer_class"] = type(before).__name__
        path.write_text(to_json(document) + "\n", "utf-8")
    after = _tokenizer(folder)
    if type(after) is not type(before) or after(_SAMPLE).input_ids != before(_SAMPLE).input_ids:
        raise ArtifactError(
            f"the tokenizer of {source.name!r} is a {type(before).__name__}; beside the exported "
            f"model it was read back as a {type(after).__name__} that encodes otherwise. Name its "
            "tokenizer_class in the source's tokenizer_config.json"
        )


_SAMPLE = "One tokenizer, two folders:\n  the same 1234 numbers, äöü and 漢字."


def _tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def copy_others(source: Path, folder: Path, kept: list[Path]) -> None:
    """Every other file as it is; the source's model card under another name."""
    taken = {path.as_posix() for path in kept}
    numbers = ("", *(f".{i}" for i in range(2, 100)))
    card = next(c for n in numbers if (c := f"{BASE_CARD}{n}.md") not in taken)
    for relative in kept:
        target = folder / (card if relative.as_posix() == CARD else relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target)


def check(
    folder: Path, layout: Layout, digests: dict[str, dict[str, bytes]], folded: Folded
) -> None:
    """Read everything back: names, shapes, types and bytes of each tensor, and the model's kind.

    Raises:
        ArtifactError: at the first difference.
    """
    for shard, expected in layout.items():
        found, _ = read_header(folder / shard)
        if set(found) != set(expected):
            raise ArtifactError(f"{folder / shard} was read back with other tensors; export again")
        for name, tensor in found.items():
            same = (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape)
            if not same or digest_of(tensor) != digests[shard][name]:
                raise ArtifactError(
                    f"{folder / shard}: tensor {name!r} was read back different from what was "
                    "written; check the disk, and export again"
                )
    again = model_without_weights(open_source(folder))
    if type(again) is not type(folded.model) or _names(again) != _names(folded.model):
        raise ArtifactError(
            f"{folder / 'config.json'} was read back as a {type(again).__name__} with other "
            "weights; the installed transformers cannot express this model, try another release"
        )


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@dataclass(frozen=True)
class CheckpointExport:
    """What `export_checkpoint` wrote, after its own check.

    Attributes:
        folder: the checkpoint.
        base_model: what it was made of; strength, layers: what was added.
        family: the ``model_type`` of the source; written_as: that of the checkpoint.
        changed: names of the tensors that are new or have new values; all others have the bytes
            they had.
        tensors: how many tensors the checkpoint has; shards: its files of weights.
        left_out: files of the source that hold weights in another form, and were not copied.
    """

    folder: Path
    base_model: str
    strength: float
    layers: tuple[int, ...]
    family: str
    written_as: str
    changed: tuple[str, ...]
    tensors: int
    shards: tuple[str, ...]
    left_out: tuple[str, ...]
