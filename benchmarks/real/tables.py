"""The tables of the study on real models, from its results.

    python -m benchmarks.real.tables RESULTS [--budget NATS]

Over all tasks: the share of test items at which the wanted continuation is the likelier one, mean
over seeds of fitting sets, with percentile bootstrap intervals over the items; the difference from
the mean of the random directions on the same items; and how many of the expert's labels are right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.real.methods import ALL
from benchmarks.real.study import BUDGET, FIELDS
from benchmarks.real.tasks import TASKS
from benchmarks.study.results import finished
from expertsteer.evaluation.statistics import Interval, bootstrap_interval, paired_difference
from expertsteer.support.numbers import fixed, interval

RANDOM = "random directions"
LABELS = "labels right"  # a figure of some cells
Key = tuple[str, str]


def scores(results: Path, budget: float = BUDGET) -> dict[Key, Tensor]:
    """Per task and method the right answers ``[items]``, mean over seeds and random directions.

    Items are the same for every seed, so that intervals are over items.
    """
    found: dict[Key, list[Tensor]] = {}
    for cell in _cells(results, budget):
        rows = [torch.tensor([float(v) for v in row["values"]]).double() for row in cell["rows"]]
        if rows:
            found.setdefault((cell["task"], cell["method"]), []).append(torch.stack(rows).mean(0))
    return {key: torch.stack(values).mean(dim=0) for key, values in found.items()}


def _cells(results: Path, budget: float) -> list[dict[str, Any]]:
    return [cell for cell in finished(results, FIELDS).values() if cell["budget"] == budget]


def seeds(results: Path, budget: float = BUDGET) -> dict[Key, int]:
    """Per task and method how many fitting sets were drawn."""
    found: dict[Key, set[int]] = {}
    for cell in _cells(results, budget):
        found.setdefault((cell["task"], cell["method"]), set()).add(cell["seed"])
    return {key: len(values) for key, values in found.items()}


def accuracies(found: dict[Key, Tensor]) -> list[str]:
    """Methods by tasks, as lines of markdown."""
    tasks = [name for name in TASKS if any(task == name for task, _ in found)]
    return _table(tasks, found, lambda key: _with_interval(bootstrap_interval(found[key])))


def differences(found: dict[Key, Tensor]) -> list[str]:
    """The same less the mean of the random directions on each item."""
    tasks = [task for task in TASKS if (task, RANDOM) in found]
    others = {key: values for key, values in found.items() if key[1] != RANDOM}

    def shown(key: Key) -> str:
        return _with_interval(paired_difference(found[key], found[key[0], RANDOM]), signed=True)

    return _table(tasks, others, shown)


def labels_right(results: Path, budget: float = BUDGET) -> list[str]:
    """Shares of the expert's labels that are the true ones, mean over fitting sets."""
    found: dict[Key, list[Tensor]] = {}
    for cell in _cells(results, budget):
        if LABELS in cell.get("figures", {}):
            share = torch.tensor([cell["figures"][LABELS]], dtype=torch.float64)
            found.setdefault((cell["task"], cell["method"]), []).append(share)
    tasks = [name for name in TASKS if any(task == name for task, _ in found)]
    means = {key: float(torch.cat(shares).mean()) for key, shares in found.items()}
    return _table(tasks, means, lambda key: fixed(means[key], places=2, bare=True)) if means else []


def _table(tasks: Sequence[str], found: Iterable[Key], shown: Callable[[Key], str]) -> list[str]:
    keys = set(found)
    lines = [f"| | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for method in (name for name in ALL if any((task, name) in keys for task in tasks)):
        cells = [shown((t, method)) if (t, method) in keys else "not measured" for t in tasks]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _with_interval(value: Interval, signed: bool = False) -> str:
    values = (value.mean, value.low, value.high)
    return interval(values, partial(fixed, places=3, signed=signed, bare=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.tables")
    parser.add_argument("results", type=Path, help="real.jsonl of the study")
    parser.add_argument("--budget", type=float, default=BUDGET, help="nats per token")
    options = parser.parse_args(arguments)
    given = options.results, options.budget
    found = scores(*given)
    if not found:
        print(f"error: {given[0]} holds no finished cell at budget {given[1]}", file=sys.stderr)
        return 1
    counts = sorted(set(seeds(*given).values()))
    print(f"Fitting sets per cell: {', '.join(map(str, counts))}.", *accuracies(found), sep="\n")
    print("\nLess the mean of the random directions:", *differences(found), sep="\n")
    print("\nLabels of the expert that are right:", *labels_right(*given), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
