"""Which alignment, pairing rule and vector method works: the cells of ``docs/study.md``.

    python -m benchmarks.study.study run --cache FOLDER [--stories FOLDER] [--minutes 10] [--quick]
    python -m benchmarks.study.study report

``run`` appends one line per cell to the results file and skips the cells that are there, so that it
can be stopped and called again, also in several processes (``--share 1/3``). ``report`` writes the
tables and pictures of the document from the file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.study.cases import BUDGETS, Lab
from benchmarks.study.report import write_report
from benchmarks.study.results import Cell, append, finished

RESULTS = common.RESULTS / "study.jsonl"
DOCUMENT = common.ROOT / "docs" / "study.md"
SEEDS = range(1, 11)  # 0 was looked at when the defaults were chosen
SIZES = (20, 60, 200, 600, 2000)
PAIR_SIZES = (20, 200)
EXPERTS = ("bundled", "weaker", "stronger", "letters", "tuned")
EARLY_EXPERTS = ("bundled", "stronger")
COPIES = ("itself", "noised")
LOOSE = 0.1  # nats per token: the default of `compare`
RANDOM = {"demo": 20, "early": 10, "stories": 10}


def cells(stories: bool, quick: bool = False) -> Iterator[Cell]:
    """In the order they are run, what matters most first and seed by seed."""
    kept = EXPERTS[:1] if quick else EXPERTS
    seeds = SEEDS[:2] if quick else SEEDS
    for task, first in (("demo", "bundled"), ("stories", "itself")):
        if task == "demo" or stories:
            yield Cell("random", task, first, 2 if quick else RANDOM[task], 0, BUDGETS[task])
    for expert in ("target", *kept):
        yield Cell("expert", "demo", expert, 0, 0, BUDGETS["demo"])
    for seed in seeds:
        for size in PAIR_SIZES if quick else SIZES:
            yield Cell("table", "demo", "bundled", size, seed, BUDGETS["demo"])
        for size in PAIR_SIZES:
            yield from pair_cells("demo", kept, size, seed)
    copies = COPIES if stories else ()
    for seed in seeds:
        yield from pair_cells("stories", copies, PAIR_SIZES[-1], seed)
    if not quick:
        yield from further_cells(copies)


def further_cells(copies: tuple[str, ...]) -> Iterator[Cell]:
    """All layers together, a target trained for less, the looser budget, more examples."""
    for seed in SEEDS:
        for size in SIZES:
            yield Cell("joint", "demo", "bundled", size, seed, BUDGETS["demo"])
    yield Cell("random", "early", "bundled", RANDOM["early"], 0, BUDGETS["early"])
    yield Cell("expert", "early", "early", 0, 0, BUDGETS["early"])
    for size in reversed(PAIR_SIZES):
        for seed in SEEDS:
            yield from pair_cells("early", EARLY_EXPERTS, size, seed)
    for seed in SEEDS:
        yield from pair_cells("stories", copies, PAIR_SIZES[0], seed)
    for seed in SEEDS:
        for size in PAIR_SIZES:
            yield Cell("table", "demo", "bundled", size, seed, LOOSE)
    for seed in SEEDS:
        yield from pair_cells("demo", EXPERTS, max(SIZES), seed)


def pair_cells(task: str, experts: tuple[str, ...], size: int, seed: int) -> Iterator[Cell]:
    for expert in experts:
        yield Cell("pairs", task, expert, size, seed, BUDGETS[task])


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # the models are so small that threads would wait for one another
    lab = Lab(options.cache, options.stories)
    stop = time.monotonic() + 60 * options.minutes
    part, parts = (int(number) for number in options.share.split("/"))
    wanted = list(cells(options.stories is not None, options.quick))
    for number, cell in enumerate(wanted):
        if number % parts != part - 1 or cell.key in finished(options.results):
            continue
        if time.monotonic() > stop:
            break
        entry = lab.run(cell)
        append(options.results, entry)
        print(f"{number + 1}/{len(wanted)} {cell.key} {entry['seconds']} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    running = actions.add_parser("run", help="measure the cells that are missing")
    running.add_argument("--cache", type=Path, required=True, help="folder for trained experts")
    running.add_argument("--stories", type=Path, help="a TinyStories Llama (stories260K); optional")
    running.add_argument("--minutes", type=float, default=float("inf"), help="start none after")
    running.add_argument("--share", default="1/1", help="this process's cells, such as 1/3")
    running.add_argument("--quick", action="store_true", help="two seeds, two sizes, one expert")
    reporting = actions.add_parser("report", help="write tables and pictures")
    reporting.add_argument("--document", type=Path, default=DOCUMENT)
    for action in (running, reporting):
        action.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.action == "run":
        run(options)
    else:
        write_report(finished(options.results), options.document)


if __name__ == "__main__":
    main()
