"""Captures in processes of their own: what one takes of memory, and how fast several are.

python -m benchmarks.states.alone peak KIND       # MiB beyond the model, as `peak` says
python -m benchmarks.states.alone rank THREADS COUNT FOLDER     # by torchrun: `by_ranks`
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import common, timing
from benchmarks.states import cases
from expertsteer.support.ranks import ranks_of_torchrun

LONG = {"count": 32, "shortest": 128, "longest": 128}


def peak(kind: str) -> float:
    """MiB that ``"passes"``, ``"plain"``, ``"headless"`` or ``"ours"`` takes beyond the model.

    What is freed goes back to the system at once, so that the peak is what is held.
    """
    eager = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    return float(_run(["-m", "benchmarks.states.alone", "peak", kind], eager))


def by_ranks(size: int, threads: int, count: int) -> tuple[float, torch.Tensor]:
    """Seconds of a capture of ``count`` texts by ``size`` processes of ``threads`` threads, and
    its states."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    with tempfile.TemporaryDirectory() as folder:
        given = ["-m", "benchmarks.states.alone", "rank", str(threads), str(count), folder + "/out"]
        told = _run([*launch, *given])
        return float(told.split("seconds")[1]), torch.load(Path(folder) / "out" / "states.pt")


def _run(arguments: list[str], variables: dict[str, str] | None = None) -> str:
    path = os.pathsep.join([str(common.ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path} | (variables or {})
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def _peak(kind: str) -> float:
    torch.set_num_threads(1)
    network, words = cases.model(), cases.tokenizer()
    texts = cases.contrast(**LONG)

    def work() -> None:
        if kind == "passes":
            cases.forward_passes(network, words, texts, len(texts))
        elif kind == "ours":
            with tempfile.TemporaryDirectory() as folder:
                cases.ours(network, words, texts, folder + "/out")
        else:
            cases.plain(network, words, texts, head=kind == "plain")

    work()  # what is made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _now("VmRSS:")
    work()
    return _now("VmHWM:") - before


def _now(name: str) -> float:
    """MiB of this process."""
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1024


def _rank(threads: int, count: int, folder: str) -> None:
    torch.set_num_threads(threads)
    network, words, texts = cases.model(), cases.tokenizer(), cases.contrast(count)
    cases.plain(network, words, texts[:32])
    with ranks_of_torchrun() as ranks:

        def work() -> object:
            stored = cases.ours(network, words, texts, folder)
            ranks.wait()
            return stored

        ranks.wait()
        stored, seconds = timing.once(work)
        if ranks.rank == 0:
            print("seconds", seconds)
            torch.save(stored.read().states, folder + "/states.pt")


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "peak":
        print(_peak(*given))
    else:
        _rank(int(given[0]), int(given[1]), given[2])
