"""The tables of ``docs/study.md`` from the results file, written between its markers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.study.rules import RULES, correlation, rows_of
from benchmarks.study.tables import (
    Cells,
    Value,
    by_seed,
    difference,
    differences,
    figure,
    group_title,
    markdown,
    mean_of,
    of_kind,
    of_method,
    of_rule,
    of_single,
    over_seeds,
    own,
    pair_groups,
    random_scores,
    select,
    shown,
    sizes,
)
from expertsteer.evaluation.methods import DEFAULT, METHODS, OWN

LOWEST = {  # kinds of vectors on the pairs of lowest information, and how the tables call them
    "procrustes, rfm of habit": "Procrustes, RFM with the field's habit",
    "procrustes, mean difference": "Procrustes, mean difference",
    "ridge, rfm": "ridge, RFM",
    "ridge, mean difference": "ridge, mean difference",
    "bare, rfm": "bare auto-encoder, RFM",
    "identity, rfm": "identity, RFM",
    "identity, rfm, same layers": "identity, RFM, pairs of the same layer",
}
PRESENT = of_rule("lowest information")  # the default: Procrustes, RFM
VARIANCE = "highest explained variance"
TASKS = ("demo", "early", "stories")
BEST_RANDOM = "best random direction"
CORRELATED = {"nats": "information", "auc": "AUC", "explained": "explained variance"}


def write_report(cells: Cells, document: Path) -> None:
    """Fill what stands between ``<!-- name -->`` and ``<!-- /name -->``, and draw the pictures."""
    from benchmarks.study.plots import draw

    text = document.read_text("utf-8")
    for name, table in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            body = "\n" + table(cells) + "\n\n"
            text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)
    document.write_text(text, "utf-8")
    draw(cells, document.parent)


def methods_table(cells: Cells, kind: str = "table", **budget: float) -> str:
    """Every method of `compare` by the number of examples."""
    columns = sizes(cells, kind=kind, task="demo", **budget)
    rows = []
    for name in ("unsteered", *METHODS):
        line = [
            mean_of(
                over_seeds(select(cells, kind=kind, task="demo", size=n, **budget), of_method(name))
            )
            for n in columns
        ]
        if any(m.count for m in line):
            rows.append([name, *map(shown, line)])
    drawn = [] if budget else random_scores(cells, "demo")
    if drawn and kind == "table":
        share = f"{figure(sum(drawn) / len(drawn))} ({figure(min(drawn))} to {figure(max(drawn))})"
        rows.insert(1, [f"{len(drawn)} random directions: mean (range)", *[share] * len(columns)])
    return markdown(["steered by", *(f"{n} examples" for n in columns)], rows)


def controls_table(cells: Cells) -> str:
    """The default minus every control, paired by seed, one family of tests."""
    columns = sizes(cells, kind="table", task="demo")
    controls = ["unsteered", BEST_RANDOM, *(name for name in METHODS if name != DEFAULT)]
    best = max(random_scores(cells, "demo"), default=float("nan"))
    found = {}
    for n in columns:
        group = select(cells, kind="table", task="demo", size=n)
        default = over_seeds(group, of_method(DEFAULT))
        for control in controls:
            other = over_seeds(group, of_method(control))
            other = dict.fromkeys(default, best) if control == BEST_RANDOM else other
            found[control, n] = difference(default, other)
    found = {key: m for key, m in found.items() if m.count}
    title = "{} examples".format
    return differences("default minus", controls, columns, found, column_title=title)


def together_table(cells: Cells) -> str:
    """All layers at once minus the layers that validation chooses, paired by seed."""
    columns = sizes(cells, kind="joint", task="demo")
    found = {}
    for n in columns:
        joint = select(cells, kind="joint", task="demo", size=n)
        choice = select(cells, kind="table", task="demo", size=n)
        for name in (*OWN, DEFAULT):
            value = of_method(name)
            found[name, n] = difference(over_seeds(joint, value), over_seeds(choice, value))
    title = "{} examples".format
    return differences("all minus chosen", (*OWN, DEFAULT), columns, found, column_title=title)


def experts_table(cells: Cells, task: str, size: int) -> str:
    """Kinds of vectors by expert; pairs of lowest information, target layer by validation."""
    groups = [group for group in pair_groups(cells, task) if group[1] == size]
    kinds: dict[str, Value] = {
        "Procrustes, RFM (default)": PRESENT,
        "Procrustes, RFM, validated pairs": of_rule("validated"),
        "Procrustes, RFM, random pairs": of_rule("random"),
    }
    kinds |= {title: of_kind(name) for name, title in LOWEST.items()}
    rows = []
    for title, value in kinds.items():
        line = [mean_of(by_seed(cells, task, group, value)) for group in groups]
        if any(m.count for m in line):
            rows.append([title, *map(shown, line)])
    for name in OWN:
        rows.append([name, *[shown(mean_of(own(cells, task, size, name)))] * len(groups)])
    return markdown(["vector", *(group[0] for group in groups)], rows)


def own_table(cells: Cells, task: str) -> str:
    """The default minus the target's own vectors, paired by seed, by expert and size."""
    groups, found = pair_groups(cells, task), {}
    for group in groups:
        default = by_seed(cells, task, group, PRESENT)
        for name in OWN:
            found[group, name] = difference(default, own(cells, task, group[1], name))
        best = max(random_scores(cells, task), default=float("nan"))
        found[group, BEST_RANDOM] = difference(default, dict.fromkeys(default, best))
    found = {key: m for key, m in found.items() if m.count}
    columns = (*OWN, BEST_RANDOM)
    return differences("default minus", groups, columns, found, group_title)


def kinds_table(cells: Cells, task: str) -> str:
    """Other alignments and vectors minus the default, paired by seed, by expert and size."""
    groups, found = pair_groups(cells, task), {}
    for group in groups:
        default = by_seed(cells, task, group, PRESENT)
        for name in LOWEST:
            other = by_seed(cells, task, group, of_kind(name))
            found[group, name] = difference(other, default)
    found = {key: m for key, m in found.items() if m.count}
    return differences("minus default", groups, list(LOWEST), found, group_title, LOWEST.get)


def rules_table(cells: Cells, task: str) -> str:
    """Pairing rules minus random pairing; the target layer is chosen on validation."""
    groups, rules, found = pair_groups(cells, task), (*RULES, "validated"), {}
    for group in groups:
        chance = by_seed(cells, task, group, of_rule("random"))
        for rule in rules:
            found[group, rule] = difference(by_seed(cells, task, group, of_rule(rule)), chance)
    return differences("minus random pairs", groups, rules, found, group_title)


def against_lowest_table(cells: Cells) -> str:
    """Rules minus lowest information, of every task; the target layer is chosen on validation."""
    rules = ("random", "expert's last layer", "highest validation AUC", "validated")
    groups = [(task, *group) for task in TASKS for group in pair_groups(cells, task)]
    found = {}
    for task, *group in groups:
        lowest = by_seed(cells, task, group, PRESENT)
        for rule in rules:
            value = by_seed(cells, task, group, of_rule(rule))
            found[(task, *group), rule] = difference(value, lowest)
    title = "{0[0]}: {0[1]}, {0[2]}".format
    return differences("minus lowest information", groups, rules, found, title)


def alone_table(cells: Cells) -> str:
    """What can be steered without any validation, and the default with it."""
    columns = [n for e, n in pair_groups(cells, "demo") if e == "bundled"]
    rows = []
    for title, kind, value in (
        ("the pair of lowest information", "pairs", of_single("lowest information")),
        ("the pair of highest information", "pairs", of_single("highest information")),
        ("a random pair", "pairs", of_single("random")),
        ("the pair of highest explained variance", "pairs", of_single(VARIANCE)),
        ("all layers together, lowest information", "joint", of_method(DEFAULT)),
        ("the layer that validation chooses, lowest information", "pairs", PRESENT),
    ):
        groups = [select(cells, kind=kind, task="demo", expert="bundled", size=n) for n in columns]
        rows.append([title, *(shown(mean_of(over_seeds(group, value))) for group in groups)])
    return markdown(["steered at", *(f"{n} examples" for n in columns)], rows)


def directions_table(cells: Cells) -> str:
    """The target's own vectors: the RFM minus the others, paired by seed."""
    rfm, others = "target's own RFM", [name for name in OWN if name != "target's own RFM"]
    firsts = {"demo": "bundled", "early": "bundled", "stories": "itself"}
    groups = [(t, n) for t in TASKS for e, n in pair_groups(cells, t) if e == firsts[t]]
    found = {}
    for task, n in groups:
        for name in others:
            found[(task, n), name] = difference(own(cells, task, n, rfm), own(cells, task, n, name))
    return differences("own RFM minus", groups, others, found, group_title)


def single_table(cells: Cells, task: str) -> str:
    """One pair over all layers by rule, minus the mean of all pairs; nothing validated."""
    groups, found = pair_groups(cells, task), {}
    rules = ("lowest information", "highest information", VARIANCE)
    for group in groups:
        chance = by_seed(cells, task, group, of_single("random"))
        for rule in rules:
            found[group, rule] = difference(by_seed(cells, task, group, of_single(rule)), chance)
    return differences("minus the mean pair", groups, rules, found, group_title)


def correlations_table(cells: Cells, task: str) -> str:
    """Rank correlations with the test probability, over all pairs and within target layers."""
    groups, found = pair_groups(cells, task), {}
    columns = [(of, within) for of in CORRELATED for within in (False, True)]
    for group in groups:
        for of, within in columns:

            def value(cell: dict, of: str = of, within: bool = within) -> float:
                return correlation(cell, of, "probability", within)

            found[group, (of, within)] = mean_of(by_seed(cells, task, group, value))
    found = {key: m for key, m in found.items() if m.count}

    def title(column: tuple[str, bool]) -> str:
        return CORRELATED[column[0]] + (", within target layers" if column[1] else ", all pairs")

    return differences("rank correlation of", groups, columns, found, group_title, title)


def knowledge_table(cells: Cells) -> str:
    """How often each model gives the coast's answer to the test questions, unsteered."""
    rows, names = [], []
    for cell in (cell for cell in cells.values() if cell["kind"] == "expert"):
        figures = {row["name"]: row["accuracy"] for row in rows_of(cell)}
        rows.append([cell["expert"], *map(figure, figures.values())])
        names = list(figures)
    return markdown(["model", *names], rows)


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


TABLES: dict[str, Callable[[Cells], str]] = {
    "cells": count_table,
    "knowledge": knowledge_table,
    "methods": methods_table,
    "controls": controls_table,
    "together": together_table,
    "loose": lambda cells: methods_table(cells, budget=0.1),
    "experts 20": lambda cells: experts_table(cells, "demo", 20),
    "experts 200": lambda cells: experts_table(cells, "demo", 200),
    "experts 2000": lambda cells: experts_table(cells, "demo", 2000),
    "own": lambda cells: own_table(cells, "demo"),
    "kinds": lambda cells: kinds_table(cells, "demo"),
    "rules": lambda cells: rules_table(cells, "demo"),
    "single": lambda cells: single_table(cells, "demo"),
    "correlations": lambda cells: correlations_table(cells, "demo"),
    "against lowest": against_lowest_table,
    "alone": alone_table,
    "directions": directions_table,
    "early 20": lambda cells: experts_table(cells, "early", 20),
    "early 200": lambda cells: experts_table(cells, "early", 200),
    "early own": lambda cells: own_table(cells, "early"),
    "early rules": lambda cells: rules_table(cells, "early"),
    "early correlations": lambda cells: correlations_table(cells, "early"),
    "stories 20": lambda cells: experts_table(cells, "stories", 20),
    "stories 200": lambda cells: experts_table(cells, "stories", 200),
    "stories own": lambda cells: own_table(cells, "stories"),
    "stories kinds": lambda cells: kinds_table(cells, "stories"),
    "stories rules": lambda cells: rules_table(cells, "stories"),
    "stories single": lambda cells: single_table(cells, "stories"),
    "stories correlations": lambda cells: correlations_table(cells, "stories"),
}
