"""Where which vector works, on real models: the cells of the study.

    python -m benchmarks.real.study --out FOLDER [--tasks ...] [--seeds ...] [--methods ...]

A cell is a method on a task with the fitting set of a seed. Finished cells are lines of
``real.jsonl`` in the folder and are not run again, so that the command can be stopped and given
again; captures are kept beside it. `make real-models` fetches the models.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.fetch import MODELS
from benchmarks.real.lab import Lab
from benchmarks.real.methods import ALL, ONCE, rows_of
from benchmarks.real.tasks import TASKS
from benchmarks.study.results import append, finished
from expertsteer.evaluation.comparison import ComparisonRow

SEEDS = (0, 1, 2)
BUDGET = 0.1  # nats per token
NAME = "real.jsonl"


@dataclass(frozen=True)
class RealCell:
    """One line of the results."""

    task: str
    seed: int
    method: str
    expert: str
    target: str
    budget: float

    @property
    def key(self) -> tuple:
        return tuple(asdict(self).values())


FIELDS = tuple(RealCell.__dataclass_fields__)


def cells(options: argparse.Namespace) -> Iterator[RealCell]:
    """Seed by seed, and a task's methods together; what no seed changes comes once."""
    models = options.expert, options.target, options.budget
    for seed in options.seeds:
        for task in options.tasks:
            for method in options.methods:
                if method not in ONCE or seed == options.seeds[0]:
                    yield RealCell(task, seed, method, *models)


def told(row: ComparisonRow) -> dict[str, Any]:
    """What is kept of a row; ``values`` are right (1) and wrong (0) answers in the items' order."""
    return {
        "name": row.name,
        "layers": list(row.layers),
        "strength": row.strength,
        "divergence": row.divergence,
        "within": row.within,
        "validation": row.validation,
        "probability": row.prices["probability"],
        "values": "".join(str(int(value)) for value in row.values),
    }


def run(options: argparse.Namespace) -> int:
    """How many cells failed; each is told and left for the next time."""
    torch.set_num_threads(1)
    models = options.expert, options.target, options.budget
    lab = Lab(options.models, options.out / "captures", *models)
    results, stop = options.out / NAME, time.monotonic() + 60 * options.minutes
    wanted, failed = list(cells(options)), 0
    for number, cell in enumerate(wanted, 1):
        if cell.key in finished(results, FIELDS):
            continue
        if time.monotonic() > stop:
            break
        started = time.process_time()
        try:
            context = lab.context(cell.task, cell.seed)
            context.figures = {}
            rows = [told(row) for row in rows_of(context, cell.method)]
        except (ValueError, RuntimeError) as error:
            failed += 1
            print(f"{number}/{len(wanted)} {cell.key} failed: {error}", file=sys.stderr)
            continue
        seconds = round(time.process_time() - started, 1)
        figures = {"figures": context.figures} if context.figures else {}
        append(results, asdict(cell) | {"rows": rows, "seconds": seconds} | figures, FIELDS)
        shown = ", ".join(f"{row['values'].count('1') / len(row['values']):.3f}" for row in rows)
        print(f"{number}/{len(wanted)} {cell.key} {shown} in {seconds} s", flush=True)
    return failed


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real.study", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results and captures")
    parser.add_argument("--models", type=Path, default=MODELS, help="what `make real-models` wrote")
    parser.add_argument("--expert", default="qwen-1.5b")
    parser.add_argument("--target", default="gemma")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", choices=ALL, default=list(ALL), metavar="METHOD")
    parser.add_argument("--budget", type=float, default=BUDGET, help="nats per token")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start none after")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(min(run(parsed()), 1))
