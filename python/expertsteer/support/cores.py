"""How many cores this process may really use, and a word where more threads would share them.

Threads that outnumber their cores wait for each other at every operation: on two cores of which one
was busy, passes with two OpenMP threads took 7 to 30 times as long as with one.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import torch

from .numbers import short
from .telling import tell

_GROUPS, _PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(groups: Path = _GROUPS, process: Path = _PROCESS) -> float:
    """Cores by the affinity of the process, or by the quota of its control groups if that is less.

    Args:
        groups, process: where Linux tells of control groups, and of this process's.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    return min(cores, _quota(groups, process))


@cache
def tell_threads() -> None:
    """Once per process, before long work: torch has more threads than there are cores to use.

    Warns:
        UserWarning: with both figures, and what to set.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > math.ceil(cores):
        tell(
            f"torch computes with {threads} threads, and this process may use {short(cores)} "
            "cores (by its affinity and the quota of its control group): threads that wait for "
            "each other can make passes many times slower; set OMP_NUM_THREADS="
            f"{max(1, math.floor(cores))} before Python starts, or call torch.set_num_threads"
        )


def _quota(groups: Path, process: Path) -> float:
    """The least quota of the groups that the process is in; infinite where there is none."""
    try:
        lines = process.read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            found += [_share(_read(f / "cpu.max").split()) for f in _levels(groups, path)]
        elif "cpu" in controllers.split(","):
            for folder in _levels(groups / "cpu", path):
                parts = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
                found.append(_share(parts))
    return min(found)


def _levels(root: Path, path: str) -> list[Path]:
    """A group's folder and those above it up to the root: the limits of every level hold."""
    folder = root / path.lstrip("/")
    return [folder, *(above for above in folder.parents if above.is_relative_to(root))]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _share(parts: list[str]) -> float:
    """Cores of ``[quota, period]`` in microseconds; infinite where no number stands."""
    try:
        quota, period = map(float, parts)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
