"""From cells to figures over seeds, and from those to tables of words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.common import table
from benchmarks.study.cases import BUDGETS
from benchmarks.study.rules import Mean, by_rule, chosen, corrected, rows_of, single, summary

Cells = dict[tuple, dict]
Value = Callable[[dict], float]


def select(cells: Cells, **wanted: Any) -> list[dict]:
    """Cells with these entries, by seed; of budgets the study's own unless one is named."""
    found = [
        cell
        for cell in cells.values()
        if all(cell[name] == value for name, value in wanted.items())
        and cell["budget"] == wanted.get("budget", BUDGETS[cell["task"]])
    ]
    return sorted(found, key=lambda cell: cell["seed"])


def sizes(cells: Cells, **wanted: Any) -> list[int]:
    return sorted({cell["size"] for cell in select(cells, **wanted)})


def pair_groups(cells: Cells, task: str) -> list[tuple[str, int]]:
    """The experts and sizes whose pairs were measured, in the order they were first run."""
    found = select(cells, kind="pairs", task=task)
    experts = dict.fromkeys(cell["expert"] for cell in found)
    present = {(cell["expert"], cell["size"]) for cell in found}
    counts = sizes(cells, kind="pairs", task=task)
    return [(expert, n) for expert in experts for n in counts if (expert, n) in present]


def over_seeds(cells: Iterable[dict], value: Value) -> dict[int, float]:
    return {cell["seed"]: value(cell) for cell in cells}


def by_seed(cells: Cells, task: str, group: tuple[str, int], value: Value) -> dict[int, float]:
    """Of the pair cells of an expert and size."""
    expert, size = group
    return over_seeds(select(cells, kind="pairs", task=task, expert=expert, size=size), value)


def own(cells: Cells, task: str, size: int, name: str) -> dict[int, float]:
    """The target's own vectors stand in the first expert's cells; they do not depend on it."""
    first = "itself" if task == "stories" else "bundled"
    return by_seed(cells, task, (first, size), of_kind(name))


def mean_of(values: dict[int, float]) -> Mean:
    return summary(list(values.values()))


def difference(one: dict[int, float], other: dict[int, float]) -> Mean:
    """Paired by seed."""
    return summary([one[seed] - other[seed] for seed in one if seed in other])


def of_method(name: str, key: str = "accuracy") -> Value:
    """The figure of a `compare` row, NaN without one."""

    def value(cell: dict) -> float:
        return next((row[key] for row in rows_of(cell) if row["name"] == name), math.nan)

    return value


def of_kind(name: str, key: str = "accuracy") -> Value:
    """The figure of a kind of vector, its target layer chosen on validation; NaN without one."""

    def value(cell: dict) -> float:
        rows = rows_of(cell, name)
        return chosen(rows)[key] if rows else math.nan

    return value


def of_rule(rule: str, key: str = "accuracy") -> Value:
    return lambda cell: by_rule(cell, rule, key)


def of_single(rule: str, key: str = "accuracy") -> Value:
    return lambda cell: single(cell, rule, key)


def random_scores(cells: Cells, task: str, key: str = "accuracy") -> list[float]:
    """Every random direction's test score, at the settings that validation chose for it."""
    rows = [row for cell in select(cells, kind="random", task=task) for row in rows_of(cell)]
    return [row[key] for row in rows if row["name"].startswith("random direction")]


def group_title(group: tuple[str, int]) -> str:
    return f"{group[0]}, {group[1]}"


def differences(
    corner: str,
    lines: Sequence,
    columns: Sequence,
    found: dict[tuple, Mean],
    line_title: Callable[[Any], str] = str,
    column_title: Callable[[Any], str] = str,
) -> str:
    """Means with intervals, in bold where Holm's p over the whole table is below 0.05."""
    adjusted = corrected(found)
    rows = []
    for line in lines:
        cells = [
            shown(found[line, c], signed=True, sure=adjusted.get((line, c), 1.0) < 0.05)
            if (line, c) in found
            else "-"
            for c in columns
        ]
        if set(cells) != {"-"}:
            rows.append([line_title(line), *cells])
    return table([corner, *map(column_title, columns)], rows)


def shown(m: Mean, signed: bool = False, sure: bool = False) -> str:
    """``.86 [.84, .88]``, in bold if sure."""
    if not m.count or math.isnan(m.value):
        return "-"
    text = figure(m.value, signed)
    if not math.isnan(m.low):
        text += f" [{figure(m.low, signed)}, {figure(m.high, signed)}]"
    return f"**{text}**" if sure else text


def figure(value: float, signed: bool = False) -> str:
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    if float(text) == 0:
        return "0"
    return text.replace("+0.", "+.").replace("-0.", "-.").removeprefix("0")
