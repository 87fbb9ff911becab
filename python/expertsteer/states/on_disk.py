"""Captures larger than memory, by as many processes as there are, in a folder that can be resumed.

``torchrun --nproc-per-node 8 -m expertsteer capture ...`` runs `capture_to` in every process: each
has the model, and takes its share of the shards that are not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..contrast.contrast_set import ContrastSet
from ..contrast.examples import Example
from ..contrast.stream import ContrastStream, InMemory, Source, Summary, parts
from ..models.description import hidden_size
from ..models.identity import identity
from ..support.paths import local_path
from ..support.progress import bar, note, quietable
from ..support.ranks import Ranks
from ..support.tensors import integers
from ..support.writing import made_folder
from .manifest import Manifest
from .opening import of_shards
from .planning import begun, plan, require_room
from .reader import Reader
from .shards import Shards, writing
from .states import StoredStates
from .team import Team
from .tokens import warn_of_cut

_TOLD_APART = 64  # examples whose tokens tell tokenizers apart


@quietable
def capture_to(
    folder: str | os.PathLike,
    model: nn.Module,
    tokenizer: Any,
    contrast: ContrastSet | ContrastStream | str | os.PathLike,
    *,
    layers: int | Iterable[int] | None = None,
    position: str | int = "last",
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    shard_examples: int | None = None,
    progress: bool = True,
) -> StoredStates:
    """`capture` into a folder: resumable, shared out over processes, with bounded memory.

    States are written in shards of consecutive examples. A process that is killed loses the shard
    it was at and nothing else; the same call again, with any number of processes, makes only what
    is missing. Batches do not depend on who makes them, so neither do the states. Where
    ``torch.distributed`` is running every process calls this with its own copy of the model, or
    with its part of a tensor-parallel one, on a folder that all of them see.

    Args:
        folder: made if absent. One that holds another capture is refused.
        contrast: a set, a stream, or the path of a jsonl or parquet file, which is read twice:
            once to count, check and hash it, once in parts. It is never held.
        layers, position, batch_size, dtype, max_length, decoder_layers: see `capture`.
        shard_examples: examples in a shard; by default as many as fit into 64 MiB, at most 1024,
            fewer (but four batches) where there would be less than 16 shards.
        progress: say on stderr what will be written and held, and show a bar with the time left.

    Returns:
        `StoredStates`, read through memory mapping; `HiddenStates.open` gives them again later.

    Raises:
        ArtifactError: the folder holds another capture (model, revision, contrast set, layers,
            position, dtype, max_length or tokenizer), another process writes there, or the disk is
            too small.
        ValueError: as `capture`; what was written by then stays.
    """
    folder, ranks = local_path(folder, "folder"), Ranks.here()
    team = Team.of(model, ranks)
    reader = Reader(
        model, tokenizer, layers, position, batch_size, dtype, max_length, decoder_layers
    )
    source = _source(contrast)
    with ExitStack() as held:

        def begin() -> tuple[Summary, Manifest, bool, list[int]]:
            made_folder(folder)
            held.enter_context(writing(folder, alone=True))
            summary = source.summary()
            wanted = Manifest(
                model=identity(model, decoder_layers),
                contrast={"name": source.name, "sha256": summary.digest,
                          "examples": summary.examples, "positive": summary.positive},
                layers=reader.layers,
                position=position,
                max_length=max_length,
                dtype=str(reader.dtype).removeprefix("torch."),
                width=hidden_size(model),
                tokens=_digest_of_tokens(reader, source),
                shard_examples=shard_examples or 0,
            )  # fmt: skip
            shards, anew = begun(folder, wanted, batch_size)
            missing = shards.missing()
            require_room(shards, missing)
            if anew:  # nothing refused it: a manifest without a reason would refuse the way out
                shards.write_manifest()
            note(plan(shards, missing, team.count), progress)
            return summary, shards.manifest, shards.with_digests, missing

        summary, manifest, with_digests, missing = ranks.first(begin)
        if ranks.rank:
            held.enter_context(writing(folder, alone=False))
        source.told(summary)
        shards = Shards(folder, manifest, with_digests)
        mine = missing[team.index :: team.count]
        cut = _make(shards, mine, reader, source, team, progress and ranks.rank == 0)
        warn_of_cut(sum(ranks.gather(cut)), summary.examples, max_length)
    return StoredStates(**of_shards(shards))


def _source(contrast: Any) -> Source:
    if isinstance(contrast, (str, os.PathLike)):
        return ContrastStream.from_file(contrast)
    if isinstance(contrast, ContrastSet):
        return InMemory("ContrastSet", contrast.numbered)
    if isinstance(contrast, Source):
        return contrast
    raise ValueError(
        "contrast must be a ContrastSet, a ContrastStream or the path of a file, came "
        f"{type(contrast).__name__}"
    )


def _digest_of_tokens(reader: Reader, source: Iterable[Example]) -> str:
    rows, _ = reader.tokens(list(islice(source, _TOLD_APART)))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _make(
    shards: Shards,
    mine: list[int],
    reader: Reader,
    source: Iterable[Example],
    team: Team,
    progress: bool,
) -> int:
    """Capture and write the given shards; how many examples were cut."""
    manifest, cut = shards.manifest, 0
    name = "capture" if team.count == 1 else f"capture, 1 of {team.count} processes"
    with bar(sum(map(manifest.count, mine)), name, progress, "example") as ticking:
        for shard, examples in parts(source, manifest.shard_examples, set(mine)):
            first = shard * manifest.shard_examples
            tokens, shortened = reader.tokens(examples, first)
            states = reader.states(tokens, ticking.update, first)
            cut += shortened * team.writes
            if states.shape[2] != manifest.width:
                raise ValueError(
                    f"model: its layers are {states.shape[2]} wide and its configuration says "
                    f"{manifest.width}; set model.config.hidden_size, or choose layers of one "
                    "width with layers=[...]"
                )
            if team.writes:
                shards.write(
                    shard,
                    states,
                    labels=integers(e.label for e in examples),
                    keys=integers(e.key for e in examples),
                    pairs=integers(-1 if e.pair is None else e.pair for e in examples),
                )
    return cut
