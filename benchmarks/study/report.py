"""The tables of ``docs/study.md`` from the results file, written between its markers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import table
from benchmarks.study.method_tables import (
    alone_table,
    controls_table,
    methods_table,
    together_table,
)
from benchmarks.study.pair_tables import (
    against_lowest_table,
    correlations_table,
    directions_table,
    experts_table,
    kinds_table,
    own_table,
    rules_table,
    single_table,
)
from benchmarks.study.rules import rows_of
from benchmarks.study.tables import Cells, figure


def write_report(cells: Cells, document: Path) -> None:
    """Fill what stands between ``<!-- name -->`` and ``<!-- /name -->``, and draw the pictures."""
    from benchmarks.study.plots import draw

    text = document.read_text("utf-8")
    for name, made in TABLES.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            body = "\n" + made(cells) + "\n\n"
            text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)
    document.write_text(text, "utf-8")
    draw(cells, document.parent)


def knowledge_table(cells: Cells) -> str:
    """How often each model gives the coast's answer to the test questions, unsteered."""
    rows, names = [], []
    for cell in (cell for cell in cells.values() if cell["kind"] == "expert"):
        figures = {row["name"]: row["accuracy"] for row in rows_of(cell)}
        rows.append([cell["expert"], *map(figure, figures.values())])
        names = list(figures)
    return table(["model", *names], rows)


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
    return table(titles, rows)


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
