"""What ``expertsteer evaluate`` refuses, or reads, before a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..support.paths import local_path

# What a report consists of; a folder with anything else in it is left alone.
MEASURED = "measured.jsonl"  # what a stopped run has, and goes on from
REPORT = (
    "evaluation.json",
    "index.html",
    "layer_pairs.png",
    MEASURED,
    "strength_curve.png",
    "table.md",
)


def require_sources(expert: str | None, contrast: Path | None, vectors: Any) -> None:
    if expert is not None and contrast is None:
        raise ValueError("--expert needs --contrast, the texts that its vectors are fitted on")
    if contrast is None and not vectors:
        raise ValueError(
            "nothing to evaluate: give --expert and --contrast, --vectors, or --contrast for the "
            "target's own vectors"
        )


def matching(patterns: list[str], names: Sequence[str], verdict: str | None) -> list[str]:
    """The names that are given or match a pattern, in their own order, and the verdict's."""
    found = {verdict} if verdict in names else set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            listed = "\n  ".join(names)
            raise ValueError(
                f"--methods: {pattern!r} is no row and matches none; there are\n  {listed}"
            )
        found.update(matched)
    return [name for name in names if name in found]


def only(vectors: Any, layers: list[int] | None, name: str) -> Any:
    """Vectors at the layers that may be steered."""
    if layers is None:
        return vectors
    kept = [layer for layer in vectors.layers if layer in layers]
    if not kept:
        raise ValueError(f"--layers: {name} has vectors at {vectors.layers}, came {layers}")
    return vectors.select(kept)


@contextmanager
def how_to_go_on(report: Path | None) -> Iterator[None]:
    """Say on ctrl-c what becomes of the results."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"results are kept in {report}, and the same command goes on from them"
        print(f"stopped; {kept if report else 'with --report results are kept'}", file=sys.stderr)
        raise


def require_own_folder(folder: Path | None) -> None:
    """A report replaces an earlier one, and nothing else.

    Raises:
        ValueError: the folder is a file, or holds what no report consists of.
    """
    if folder is None:
        return
    folder = local_path(folder, "--report")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--report: {folder} is a file; name a folder")
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in REPORT)
    if foreign:
        raise ValueError(
            f"--report: {folder} holds {foreign[0]!r}, which is not of a report (and "
            f"{len(foreign) - 1} more such); name an empty or a new folder"
        )


def task_options(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that the task has; one that was set for another task is refused."""
    of = {
        "normalize": ("choice", False),
        "scoring": ("generation", "exact"),
        "max_new_tokens": ("generation", 32),
        "stop": ("generation", None),
    }
    for name, (owner, default) in of.items():
        if owner is not kind and given[name] != default:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} belongs to --task-type {owner}, came with {kind}")
    chosen = {name: given[name] for name, (owner, _) in of.items() if owner is kind}
    return {name: value for name, value in chosen.items() if value is not None}
