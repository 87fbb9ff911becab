"""Captures larger than memory, by as many processes as there are, in a folder that can be resumed.

``torchrun --nproc-per-node 8 -m expertsteer capture ...`` runs `capture_to` in every process: each
has the model, and takes its share of the shards that are not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ._examples import Example
from ._files import ArtifactError
from ._identity import identity
from ._manifest import MOST_SHARDS, Manifest
from ._paths import local_path
from ._ranks import Ranks
from ._reader import Reader
from ._shards import MANIFEST, Shards, writing
from ._tensors import integers
from ._tokens import warn_of_cut
from ._writing import made_folder
from .contrast import ContrastSet
from .models import hidden_size
from .stored import StoredStates
from .streams import ContrastStream, Source, Summary, parts, summarised

SHARD_BYTES, SHARD_EXAMPLES = 64 * 2**20, 1024
_SHARDS, _BATCHES = 16, 4  # of a small set: something to share out, but lengths to sort by
_TOLD_APART = 64  # examples whose tokens tell tokenizers apart


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
    `torch.distributed` is running every process calls this with its own copy of the model, or
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
        model,
        tokenizer,
        layers=layers,
        position=position,
        batch_size=batch_size,
        dtype=dtype,
        max_length=max_length,
        decoder_layers=decoder_layers,
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
            shards, anew = _begun(folder, wanted, batch_size)
            missing = shards.missing()
            _require_room(shards, missing)
            if anew:  # nothing refused it: a manifest without a reason would refuse the way out
                shards.write_manifest()
            if progress:
                print(_plan(shards, missing, team.count), file=sys.stderr)
            return summary, shards.manifest, shards.with_digests, missing

        summary, manifest, with_digests, missing = ranks.first(begin)
        if ranks.rank:
            held.enter_context(writing(folder, alone=False))
        source.told(summary)
        shards = Shards(folder, manifest, with_digests)
        mine = missing[team.index :: team.count]
        cut = _make(shards, mine, reader, source, team, progress and ranks.rank == 0)
        warn_of_cut(sum(ranks.gather(cut)), summary.examples, max_length, stacklevel=2)
    return shards.stored()


@dataclass(frozen=True)
class Team:
    """Processes that run one copy of the model together: one, or those of its tensor parallelism.

    Attributes:
        index: of this copy of the model; count: how many copies there are.
        writes: whether this process is the one of its copy that writes.
    """

    index: int
    count: int
    writes: bool

    @classmethod
    def of(cls, model: nn.Module, ranks: Ranks) -> Team:
        size = getattr(model, "tp_size", None) or _spread_over(model)
        if ranks.size % size:
            raise ValueError(
                f"model is spread over {size} processes, which must divide the {ranks.size} that "
                "run; start a multiple of them"
            )
        return cls(ranks.rank // size, ranks.size // size, ranks.rank % size == 0)


def _spread_over(model: nn.Module) -> int:
    """Over how many processes the weights are; transformers before 5 does not say otherwise."""
    meshes = (getattr(p, "device_mesh", None) for p in model.parameters())
    return next((mesh.size() for mesh in meshes if mesh is not None), 1)


def _source(contrast: Any) -> Source:
    if isinstance(contrast, (str, os.PathLike)):
        return ContrastStream.from_file(contrast)
    if isinstance(contrast, ContrastSet):
        return _InMemory(contrast)
    if isinstance(contrast, Source):
        return contrast
    raise ValueError(
        "contrast must be a ContrastSet, a ContrastStream or the path of a file, came "
        f"{type(contrast).__name__}"
    )


class _InMemory:
    """A `ContrastSet` with the face of a stream; a subset may hold a single label."""

    name = "ContrastSet"

    def __init__(self, contrast: ContrastSet):
        self._contrast = contrast

    def __iter__(self) -> Iterator[Example]:
        return self._contrast.numbered()

    def summary(self) -> Summary:
        return summarised(self)

    def told(self, summary: Summary) -> None:
        pass


def _begun(folder: Path, wanted: Manifest, batch_size: int) -> tuple[Shards, bool]:
    """The capture in the folder, if it is this one, or a new one; and whether it is new.

    A manifest without any shard is of a capture that was refused, and is replaced.
    """
    given = wanted.shard_examples
    if type(given) is not int or given < 0:
        raise ValueError(f"shard_examples must be a positive integer or None, came {given!r}")
    there = Shards.open(folder) if (folder / MANIFEST).is_file() else None
    if there is not None and there.begun():
        shards, anew = there, False
        shards.manifest.require_same(wanted, folder)
        if given and given != shards.manifest.shard_examples:
            raise ArtifactError(
                f"shard_examples: folder {str(folder)!r} was begun with "
                f"{shards.manifest.shard_examples}, came {given}; leave it out to go on"
            )
    else:
        size = given or _shard_size(wanted, batch_size)
        shards, anew = Shards(folder, Manifest(**vars(wanted) | {"shard_examples": size})), True
        if shards.manifest.shards > MOST_SHARDS:
            raise ValueError(
                f"shard_examples: {shards.manifest.shards:,} shards of {size} examples are more "
                f"than {MOST_SHARDS:,}; give a larger number"
            )
    shards.clear_temporary()
    return shards, anew


def _shard_size(manifest: Manifest, batch_size: int) -> int:
    fits = SHARD_BYTES // _bytes_of(manifest, 1)
    size = min(fits, SHARD_EXAMPLES, max(_BATCHES * batch_size, manifest.examples // _SHARDS))
    return max(1, size if size < batch_size else size - size % batch_size)


def _bytes_of(manifest: Manifest, examples: int) -> int:
    """States, label, key and pair."""
    state = len(manifest.layers) * manifest.width * getattr(torch, manifest.dtype).itemsize
    return examples * (state + 3 * 8)


def _digest_of_tokens(reader: Reader, source: Iterable[Example]) -> str:
    rows, _ = reader.tokens(list(islice(source, _TOLD_APART)))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _require_room(shards: Shards, missing: list[int]) -> None:
    needed = _bytes_of(shards.manifest, sum(map(shards.manifest.count, missing)))
    free = shutil.disk_usage(shards.folder).free
    if needed > free:
        raise ArtifactError(
            f"folder {str(shards.folder)!r} needs {_size(needed)} and its disk has {_size(free)} "
            "left; choose another folder, fewer layers or a narrower dtype"
        )


def _plan(shards: Shards, missing: list[int], copies: int) -> str:
    """What will be on disk and in memory, in a sentence each."""
    layers, examples, width = shards.manifest.shape
    there = shards.manifest.shards - len(missing)
    begun = f", {there} of them there already" if there else ""
    # Twice a shard: its states, and the bytes that are written.
    held = 2 * _bytes_of(shards.manifest, min(examples, shards.manifest.shard_examples))
    free = shutil.disk_usage(shards.folder).free
    models = f"{copies} copies" if copies > 1 else "1 copy"
    return (
        f"capture: {examples:,} examples x {layers} layers x {width} in {shards.manifest.dtype}: "
        f"{_size(_bytes_of(shards.manifest, examples))} on disk ({_size(free)} free) in "
        f"{shards.manifest.shards:,} shard(s){begun}; {models} of "
        f"the model, each beside at most {_size(held)} of states in memory"
    )


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
    bar = tqdm(total=sum(map(manifest.count, mine)), desc=name, unit="example", delay=2,
               leave=False, disable=not progress)  # fmt: skip
    with bar:
        for shard, examples in parts(source, manifest.shard_examples, set(mine)):
            first = shard * manifest.shard_examples
            tokens, shortened = reader.tokens(examples, first)
            states = reader.states(tokens, bar.update, first)
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


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
