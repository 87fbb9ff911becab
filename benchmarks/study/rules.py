"""What a pairing rule would have chosen among the measured pairs, and how sure a mean is.

Every pair of layers was measured by itself, so any rule can be judged afterwards: it gives every
target layer an expert layer, and validation picks the target layer, as `compare` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.study.results import COLUMNS
from expertsteer.evaluation.statistics import holm

PAIRS = "procrustes, rfm"
Row = dict[str, Any]


def rows_of(entry: dict, name: str | None = None) -> list[Row]:
    """The rows of a cell as dicts, those of one name or all."""
    rows = [dict(zip(COLUMNS, row)) for row in entry["rows"]]
    return [row for row in rows if name in (None, row["name"])]


def chosen(rows: Sequence[Row]) -> Row:
    """The row that is best on validation."""
    return max(rows, key=lambda row: (row["validation"], row["validation_probability"] or 0.0))


def _nats(entry: dict, row: Row) -> float:
    return entry["nats"][row["expert_layer"]][row["layers"][0]]


def _depth(entry: dict, row: Row) -> float:
    experts, targets = len(entry["nats"]), len(entry["nats"][0])
    return -abs(row["expert_layer"] / (experts - 1) - row["layers"][0] / (targets - 1))


# What each rule prefers for a target layer; equal ones go to the later expert layer.
RULES: dict[str, Callable[[dict, Row], float]] = {
    "lowest information": lambda entry, row: -_nats(entry, row),
    "highest information": _nats,
    "same relative depth": _depth,
    "expert's last layer": lambda entry, row: row["expert_layer"],
    "highest validation AUC": lambda entry, row: row["auc"],
    "highest explained variance": lambda entry, row: row["explained"],
}


def by_rule(entry: dict, rule: str, key: str) -> float:
    """The test figure ``key`` where the rule picks the expert layer of every target layer.

    ``"random"`` is the mean over all choices; with ``"validated"`` validation chooses among all
    pairs.
    """
    groups = _by_target(entry)
    if rule == "validated":
        return chosen([row for group in groups for row in group])[key]
    if rule == "random":
        return mean(chosen(rows)[key] for rows in itertools.product(*groups))
    prefers = RULES[rule]
    return chosen(
        [max(group, key=lambda row: (prefers(entry, row), row["expert_layer"])) for group in groups]
    )[key]


def single(entry: dict, rule: str, key: str) -> float:
    """The same for one pair over all layers, with nothing chosen on validation."""
    rows = rows_of(entry, PAIRS)
    if rule == "random":
        return mean(row[key] for row in rows)
    return max(rows, key=lambda row: RULES[rule](entry, row))[key]


def correlation(entry: dict, of: str, key: str, within: bool) -> float:
    """Spearman's between ``"nats"``, ``"auc"``, ... of the pairs and the test figure ``key``.

    ``within`` compares pairs of one target layer only, and takes the mean over those layers.
    """
    groups = _by_target(entry) if within else [rows_of(entry, PAIRS)]
    found = []
    for rows in groups:
        x = [_nats(entry, row) if of == "nats" else row[of] for row in rows]
        y = [row[key] for row in rows]
        if len(set(x)) > 1 and len(set(y)) > 1:
            found.append(float(stats.spearmanr(x, y).statistic))
    return mean(found) if found else math.nan


def _by_target(entry: dict) -> list[list[Row]]:
    rows = rows_of(entry, PAIRS)
    layers = sorted({row["layers"][0] for row in rows})
    return [[row for row in rows if row["layers"] == [layer]] for layer in layers]


class Mean(NamedTuple):
    """Of values over seeds: with the interval and the p-value of Student's t against 0."""

    value: float
    low: float
    high: float
    p: float
    count: int


def summary(values: Sequence[float]) -> Mean:
    """Needs two values; those that do not vary have no width, and p 0 or 1."""
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        middle = values[0] if values else math.nan
        return Mean(middle, math.nan, math.nan, math.nan, len(values))
    middle, error = mean(values), stdev(values) / math.sqrt(len(values))
    if error < 1e-12:
        return Mean(middle, middle, middle, float(abs(middle) < 1e-12), len(values))
    reach = error * float(stats.t.ppf(0.975, len(values) - 1))
    p = float(2 * stats.t.sf(abs(middle) / error, len(values) - 1))
    return Mean(middle, middle - reach, middle + reach, p, len(values))


def corrected(found: dict[Any, Mean]) -> dict[Any, float]:
    """Holm's p-values of one family; without one where there is none."""
    usable = {key: m.p for key, m in found.items() if not math.isnan(m.p)}
    return dict(zip(usable, holm(list(usable.values())))) if usable else {}
