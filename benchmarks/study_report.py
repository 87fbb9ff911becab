"""The tables of ``docs/study.md`` from the results file, written between its markers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from expertsteer.baselines import DEFAULT, METHODS, OWN
from study_cases import BUDGETS
from study_rules import (
    RULES,
    Mean,
    by_rule,
    chosen,
    corrected,
    correlation,
    rows_of,
    single,
    summary,
)

Cells = dict[tuple, dict]
Value = Callable[[dict], float]

LOWEST = {  # how a kind of vector is told in the tables, with the pairs of lowest information
    "procrustes, rfm of habit": "Procrustes, RFM with the field's habit",
    "procrustes, mean difference": "Procrustes, mean difference",
    "ridge, rfm": "ridge, RFM",
    "ridge, mean difference": "ridge, mean difference",
    "bare, rfm": "bare auto-encoder, RFM",
    "identity, rfm": "identity, RFM",
    "identity, rfm, same layers": "identity, RFM, pairs of the same layer",
}
PRESENT = "Procrustes, RFM (default)"
ALL_RULES = (*RULES, "random", "validated")


def write_report(cells: Cells, document: Path) -> None:
    """Fill what stands between ``<!-- name -->`` and ``<!-- /name -->``, and draw the pictures."""
    from study_plots import draw

    text = document.read_text("utf-8")
    for name, table in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        body = "\n" + table(cells) + "\n\n"
        text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)
    document.write_text(text, "utf-8")
    draw(cells, document.parent)


def select(cells: Cells, **wanted) -> list[dict]:
    """Cells with these entries, by seed; of budgets the study's own unless one is named."""
    found = [
        cell
        for cell in cells.values()
        if all(cell[name] == value for name, value in wanted.items())
        and cell["budget"] == wanted.get("budget", BUDGETS[cell["task"]])
    ]
    return sorted(found, key=lambda cell: cell["seed"])


def over_seeds(cells: Iterable[dict], value: Value) -> dict[int, float]:
    return {cell["seed"]: value(cell) for cell in cells}


def difference(one: dict[int, float], other: dict[int, float]) -> Mean:
    """Paired by seed."""
    return summary([one[seed] - other[seed] for seed in one if seed in other])


def of_method(name: str, key: str = "accuracy") -> Value:
    """The figure of a `compare` row."""
    return lambda cell: next(row[key] for row in rows_of(cell) if row["name"] == name)


def of_kind(name: str, key: str = "accuracy") -> Value:
    """The figure of a kind of vector, its target layer chosen on validation."""

    def value(cell: dict) -> float:
        rows = rows_of(cell, name)
        return chosen(rows)[key] if rows else math.nan

    return value


def of_rule(rule: str, key: str = "accuracy") -> Value:
    return lambda cell: by_rule(cell, rule, key)


def random_scores(cells: Cells, task: str, key: str = "accuracy") -> list[float]:
    """Every random direction's test score, at the settings that validation chose for it."""
    rows = [row for cell in select(cells, kind="random", task=task) for row in rows_of(cell)]
    return [row[key] for row in rows if row["name"].startswith("random direction")]


def sizes(cells: Cells, **wanted) -> list[int]:
    return sorted({cell["size"] for cell in select(cells, **wanted)})


def methods_table(cells: Cells) -> str:
    """Every method of `compare` by the number of examples."""
    columns = sizes(cells, kind="table", task="demo")
    rows = []
    for name in ("unsteered", *METHODS):
        found = [
            over_seeds(select(cells, kind="table", task="demo", size=n), _if_there(name))
            for n in columns
        ]
        if any(not math.isnan(v) for by_seed in found for v in by_seed.values()):
            rows.append([name, *(shown(summary(list(by_seed.values()))) for by_seed in found)])
    drawn = random_scores(cells, "demo")
    if drawn:
        share = f"{_figure(summary(drawn).value)} ({_figure(min(drawn))} to {_figure(max(drawn))})"
        rows.insert(
            1, [f"random directions, mean of {len(drawn)} (range)", *[share] * len(columns)]
        )
    return markdown(["steered by", *(f"{n} examples" for n in columns)], rows)


def own_table(cells: Cells) -> str:
    """The default expert vector minus controls, paired by seed, one family of tests."""
    columns = sizes(cells, kind="table", task="demo")
    controls = ("best random direction", "unsteered", *OWN, *(m for m in METHODS if m not in OWN))
    found = {}
    for n in columns:
        chosen_cells = select(cells, kind="table", task="demo", size=n)
        default = over_seeds(chosen_cells, of_method(DEFAULT))
        best = max(random_scores(cells, "demo"), default=math.nan)
        for control in controls:
            other = over_seeds(chosen_cells, _if_there(control))
            if control == "best random direction":
                other = dict.fromkeys(default, best)
            if control != DEFAULT and not all(map(math.isnan, other.values())):
                found[control, n] = difference(default, other)
    return differences("default minus", controls, columns, found)


def experts_table(cells: Cells, task: str, size: int) -> str:
    """Kinds of vectors by expert; pairs of lowest information, target layer by validation."""
    key = "accuracy"
    experts = _experts(cells, task, size)
    rows = []
    kinds: dict[str, Value] = {PRESENT: of_rule("lowest information", key)}
    kinds["Procrustes, RFM, validated pairs"] = of_rule("validated", key)
    kinds |= {title: of_kind(name, key) for name, title in LOWEST.items()}
    for title, value in kinds.items():
        line = [summary(list(_seeds(cells, task, e, size, value).values())) for e in experts]
        if any(m.count for m in line):
            rows.append([title, *map(shown, line)])
    for name in OWN:
        found = summary(list(_own(cells, task, size, name).values()))
        rows.append([name, *[shown(found)] * len(experts)])
    return markdown(["vector", *experts], rows)


def against_own_table(cells: Cells, task: str) -> str:
    """Expert's vectors minus the target's own RFM and best own vector, by expert and size."""
    found, lines = {}, []
    titles = {PRESENT: "lowest information", "Procrustes, RFM, validated pairs": "validated"}
    columns = [
        (expert, n)
        for n in sizes(cells, kind="pairs", task=task)
        for expert in _experts(cells, task, n)
    ]
    for title, rule in titles.items():
        for own in OWN:
            line = f"{title} minus {own}"
            lines.append(line)
            for expert, n in columns:
                value = _seeds(cells, task, expert, n, of_rule(rule))
                found[line, (expert, n)] = difference(value, _own(cells, task, n, own))
    return differences("difference", lines, columns, found, lambda c: f"{c[0]}, {c[1]}")


def rules_table(cells: Cells, task: str) -> str:
    """Pairing rules minus random pairing; the target layer is chosen on validation."""
    columns = [
        (expert, n)
        for n in sizes(cells, kind="pairs", task=task)
        for expert in _experts(cells, task, n)
    ]
    found = {}
    for expert, n in columns:
        chance = _seeds(cells, task, expert, n, of_rule("random"))
        for rule in ALL_RULES:
            if rule != "random":
                value = _seeds(cells, task, expert, n, of_rule(rule))
                found[rule, (expert, n)] = difference(value, chance)
    lines = [rule for rule in ALL_RULES if rule != "random"]
    return differences("minus random pairs", lines, columns, found, lambda c: f"{c[0]}, {c[1]}")


def single_table(cells: Cells, task: str) -> str:
    """One pair over all layers by rule, minus the mean of all pairs; nothing validated."""
    columns = [
        (expert, n)
        for n in sizes(cells, kind="pairs", task=task)
        for expert in _experts(cells, task, n)
    ]
    lines = ("lowest information", "highest information", "highest explained variance")
    found = {}
    for expert, n in columns:
        every = _seeds(cells, task, expert, n, lambda cell: single(cell, "random", "accuracy"))
        for rule in lines:
            value = _seeds(cells, task, expert, n, lambda c, r=rule: single(c, r, "accuracy"))
            found[rule, (expert, n)] = difference(value, every)
    return differences("minus the mean pair", lines, columns, found, lambda c: f"{c[0]}, {c[1]}")


def correlations_table(cells: Cells, task: str) -> str:
    """Rank correlations with the test probability, over all pairs and within target layers."""
    columns = [
        (expert, n)
        for n in sizes(cells, kind="pairs", task=task)
        for expert in _experts(cells, task, n)
    ]
    words = {
        "nats": "information",
        "auc": "validation AUC",
        "explained": "explained variance",
        "validation_probability": "the same on validation",
    }
    found, lines = {}, []
    for of, word in words.items():
        for within, where in ((False, "all pairs"), (True, "within target layers")):
            line = f"{word}, {where}"
            lines.append(line)
            for expert, n in columns:

                def value(cell: dict, of: str = of, within: bool = within) -> float:
                    return correlation(cell, of, "probability", within)

                found[line, (expert, n)] = summary(
                    list(_seeds(cells, task, expert, n, value).values())
                )
    return differences("rank correlation of", lines, columns, found, lambda c: f"{c[0]}, {c[1]}")


def knowledge_table(cells: Cells) -> str:
    """What each expert knows: the coast's answers to the test questions."""
    rows = []
    for cell in select(cells, kind="expert"):
        figures = {row["name"]: row for row in rows_of(cell)}
        rows.append([cell["expert"], *(f"{_figure(r['accuracy'])}" for r in figures.values())])
        names = list(figures)
    return markdown(["model", *names], rows) if rows else "not measured"


def count_table(cells: Cells) -> str:
    """How many cells there are, and what they cost."""
    groups: dict[tuple, list[dict]] = {}
    for cell in cells.values():
        groups.setdefault((cell["task"], cell["kind"], cell["budget"]), []).append(cell)
    rows = [
        [
            task,
            kind,
            f"{budget:g}",
            ", ".join(dict.fromkeys(c["expert"] for c in group)),
            ", ".join(map(str, sorted({c["size"] for c in group}))),
            str(len({c["seed"] for c in group})),
            str(len(group)),
            f"{sum(c['seconds'] for c in group) / 60:.1f}",
        ]
        for (task, kind, budget), group in groups.items()
    ]
    titles = ["task", "kind", "budget", "experts", "sizes", "seeds", "cells", "processor minutes"]
    return markdown(titles, rows)


def differences(
    corner: str,
    lines: Sequence[str],
    columns: Sequence,
    found: dict[tuple, Mean],
    title: Callable = lambda n: f"{n} examples",
) -> str:
    """Means with intervals, in bold where Holm's p over the whole table is below 0.05."""
    adjusted = corrected(found)
    rows = [
        [
            line,
            *(
                shown(found[line, c], signed=True, sure=adjusted.get((line, c), 1.0) < 0.05)
                if (line, c) in found
                else "-"
                for c in columns
            ),
        ]
        for line in lines
        if any((line, c) in found for c in columns)
    ]
    return markdown([corner, *map(title, columns)], rows)


def shown(m: Mean, signed: bool = False, sure: bool = False) -> str:
    """``.86 [.84, .88]``, in bold if sure."""
    if not m.count or math.isnan(m.value):
        return "-"
    text = _figure(m.value, signed)
    if not math.isnan(m.low):
        text += f" [{_figure(m.low, signed)}, {_figure(m.high, signed)}]"
    return f"**{text}**" if sure else text


def _figure(value: float, signed: bool = False) -> str:
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    return text.replace("+0.", "+.").replace("-0.", "-.").removeprefix("0") or "0"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _if_there(name: str) -> Value:
    return lambda cell: next(
        (row["accuracy"] for row in rows_of(cell) if row["name"] == name), math.nan
    )


def _experts(cells: Cells, task: str, size: int) -> list[str]:
    return list(
        dict.fromkeys(c["expert"] for c in select(cells, kind="pairs", task=task, size=size))
    )


def _seeds(cells: Cells, task: str, expert: str, size: int, value: Value) -> dict[int, float]:
    return over_seeds(select(cells, kind="pairs", task=task, expert=expert, size=size), value)


def _own(cells: Cells, task: str, size: int, name: str) -> dict[int, float]:
    """The target's own vectors stand in the first expert's cells; they do not depend on it."""
    first = "bundled" if task == "demo" else "itself"
    return _seeds(cells, task, first, size, of_kind(name))


TABLES: dict[str, Callable[[Cells], str]] = {
    "cells": count_table,
    "knowledge": knowledge_table,
    "methods": methods_table,
    "own": own_table,
    "experts 20": lambda cells: experts_table(cells, "demo", 20),
    "experts 200": lambda cells: experts_table(cells, "demo", 200),
    "against own": lambda cells: against_own_table(cells, "demo"),
    "rules": lambda cells: rules_table(cells, "demo"),
    "single": lambda cells: single_table(cells, "demo"),
    "correlations": lambda cells: correlations_table(cells, "demo"),
    "stories 20": lambda cells: experts_table(cells, "stories", 20),
    "stories 200": lambda cells: experts_table(cells, "stories", 200),
    "stories against own": lambda cells: against_own_table(cells, "stories"),
    "stories rules": lambda cells: rules_table(cells, "stories"),
    "stories single": lambda cells: single_table(cells, "stories"),
    "stories correlations": lambda cells: correlations_table(cells, "stories"),
}
