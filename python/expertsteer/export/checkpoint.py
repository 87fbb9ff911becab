"""A steered model as a checkpoint that plain transformers loads, and servers that run its models.

The vectors become biases (`folding_checkpoint` says where, and which families have the place). The
weights go from file to file, so a model larger than memory can be exported.

A server with code of its own for a family has to read the option that gives the biases. vLLM's
Llama reads ``mlp_bias``. SGLang's Llama does not, and skips the tensors without a word: there, run
transformers' code (``--model-impl transformers``), or export hooks (`export.sglang`). Compare one
greedy completion with that of transformers before you rely on any server.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

from torch import nn

from ..folding.families import last_linear, why_not_foldable
from ..folding.permanent import fold_permanently, why_not_permanent
from ..models.decoder import find_decoder
from ..steering.checks import checked_experts
from ..steering.strengths import resolved_strength
from ..support.numbers import size_text
from ..support.writing import appearing, require_new
from ..vectors.vectors import SteeringVectors
from .card import checkpoint_card
from .checkpoint_files import (
    CARD,
    CheckpointExport,
    Folded,
    check,
    copy_others,
    plan,
    write_config,
    write_index,
)
from .source import SourceCheckpoint, disk_name, model_without_weights, open_source
from .tensor_files import NewTensor, write_tensors


def export_checkpoint(
    source: str | os.PathLike,
    vectors: SteeringVectors,
    out: str | os.PathLike,
    *,
    strength: float | str = 1.0,
    revision: str | None = None,
    decoder_layers: str | None = None,
    check_model: bool = True,
) -> CheckpointExport:
    """Write a steered copy of a checkpoint: ``h <- h + strength * scale * vector`` everywhere.

    Weights are copied from shard to shard, a few megabytes in memory at a time, and keep bytes,
    type and shard. Tokenizer, chat template, generation settings and all other files come along;
    ``README.md`` becomes a model card, the source's own stays as ``README.base_model.md``. The
    folder appears under its name when it is complete and has been read back, or not at all.

    Args:
        source: checkpoint folder with safetensors weights, or a Hub id.
        vectors: what to add, at all positions.
        out: the new folder; must not exist, or be empty.
        strength: a finite number, or ``"auto"`` for that of the stored calibration.
        revision: Hub branch, tag or commit of the source.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.
        check_model: refuse vectors whose metadata name another architecture or depth.

    Raises:
        ValueError: a source that is quantised, pickled, an adapter or incomplete; a family or a
            layer that no stock checkpoint can carry, with the reason; vectors of another model;
            a bias that is not finite in the type of the weights; too little room on the disk.
        ArtifactError: a damaged file of the source; a folder that cannot be written, or that was
            read back with other contents.
    """
    if not isinstance(vectors, SteeringVectors):
        raise ValueError(f"vectors must be SteeringVectors, came {type(vectors).__name__}")
    out = require_new(out)
    strength = resolved_strength(strength, {0: vectors}, "add")
    opened = open_source(source, revision)
    folded = _folded(opened, vectors, strength, decoder_layers, check_model)
    layout = plan(opened, folded)
    written = {n: t for tensors in layout.values() for n, t in tensors.items()}
    changed = tuple(sorted(n for n, t in written.items() if isinstance(t, NewTensor)))
    kept, left_out = opened.other_files()
    export = CheckpointExport(
        folder=out,
        base_model=opened.name,
        strength=strength,
        layers=vectors.layers,
        family=folded.family,
        written_as=folded.model.config.model_type,
        changed=changed,
        tensors=len(written),
        shards=tuple(layout),
        left_out=tuple(path.as_posix() for path in left_out),
    )
    _require_room(out, opened, written, kept)
    with appearing(out) as folder:
        digests = {}
        for shard, tensors in layout.items():
            metadata = opened.shards[shard][1]
            digests[shard] = write_tensors(folder / shard, tensors, metadata)
        write_index(folder, opened, layout)
        copy_others(opened.folder, folder, kept)
        write_config(folder, opened, folded)
        base_card = _text(opened.folder / CARD)
        (folder / CARD).write_text(checkpoint_card(export, vectors, opened, base_card), "utf-8")
        check(folder, layout, digests, folded)
    return export


def _folded(
    source: SourceCheckpoint,
    vectors: SteeringVectors,
    strength: float,
    decoder_layers: str | None,
    check_model: bool,
) -> Folded:
    """The folded model without weights: only the biases that are changed are real."""
    model = model_without_weights(source)
    found = find_decoder(model, decoder_layers)
    checked_experts(model, vectors, found, check_model, "add", None)
    reasons = (why_not_foldable(model, i, decoder_layers) for i in vectors.layers)
    reason = next(filter(None, reasons), None) or why_not_permanent(model, decoder_layers)
    if reason is not None:
        raise ValueError(
            f"model {source.name!r} cannot be written as a steered checkpoint: {reason} "
            "(expertsteer.attach steers it while it runs)"
        )
    config, stored = copy.deepcopy(model.config), source.tensors
    biases = [_bias_name(model, i, decoder_layers) for i in vectors.layers]
    present = {disk_name(model, name, stored) for name in biases} - {None}
    if present:
        model = model_without_weights(source, real=present)
    model = fold_permanently(model, vectors, strength, decoder_layers)
    biases = tuple(_bias_name(model, i, decoder_layers) for i in vectors.layers)
    return Folded(config.model_type, config, model, biases)


def _bias_name(model: nn.Module, layer: int, decoder_layers: str | None) -> str:
    linear = last_linear(model, layer, decoder_layers)
    return next(name for name, module in model.named_modules() if module is linear) + ".bias"


def _require_room(out: Path, source: SourceCheckpoint, written: dict, kept: list[Path]) -> None:
    parent = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    needed = sum(t.length for t in written.values())
    needed += sum((source.folder / path).stat().st_size for path in kept)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"out {str(out)!r} needs {size_text(needed)}, its disk has {size_text(free)} free; "
            "make room or name a folder on another disk"
        )


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""
