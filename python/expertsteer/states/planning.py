"""Whether a capture can begin or go on in a folder, in which shards, and what it will take."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from ..support.numbers import count, size_text
from ..support.reading import ArtifactError
from .manifest import MOST_SHARDS, Manifest
from .shards import MANIFEST, Shards

SHARD_BYTES, SHARD_EXAMPLES = 64 * 2**20, 1024
_SHARDS, _BATCHES = 16, 4  # of a small set: something to share out, but lengths to sort by


def begun(folder: Path, wanted: Manifest, batch_size: int) -> tuple[Shards, bool]:
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
                f"shard_examples: {count(shards.manifest.shards)} shards of {size} examples are "
                f"more than {count(MOST_SHARDS)}; give a larger number"
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


def require_room(shards: Shards, missing: list[int]) -> None:
    needed = _bytes_of(shards.manifest, sum(map(shards.manifest.count, missing)))
    free = shutil.disk_usage(shards.folder).free
    if needed > free:
        raise ArtifactError(
            f"folder {str(shards.folder)!r} needs {size_text(needed)} and its disk has "
            f"{size_text(free)} left; choose another folder, fewer layers or a narrower dtype"
        )


def plan(shards: Shards, missing: list[int], copies: int) -> str:
    """What will be on disk and in memory, in a sentence each."""
    layers, examples, width = shards.manifest.shape
    there = shards.manifest.shards - len(missing)
    already = f", {there} of them there already" if there else ""
    # Twice a shard: its states, and the bytes that are written.
    held = 2 * _bytes_of(shards.manifest, min(examples, shards.manifest.shard_examples))
    free = shutil.disk_usage(shards.folder).free
    models = f"{copies} copies" if copies > 1 else "1 copy"
    return (
        f"capture: {count(examples)} examples x {layers} layers x {width} in "
        f"{shards.manifest.dtype}: {size_text(_bytes_of(shards.manifest, examples))} on disk "
        f"({size_text(free)} free) in {count(shards.manifest.shards)} shard(s){already}; {models} "
        f"of the model, each beside at most {size_text(held)} of states in memory"
    )
