"""Tables of `compare`'s methods by the number of examples."""

from __future__ import annotations

from benchmarks.common import table
from benchmarks.study.tables import (
    Cells,
    difference,
    differences,
    figure,
    mean_of,
    of_method,
    of_rule,
    of_single,
    over_seeds,
    pair_groups,
    random_scores,
    select,
    shown,
    sizes,
)
from expertsteer.evaluation.methods import METHODS, OWN, PAPER

BEST_RANDOM = "best random direction"
PRESENT = of_rule("lowest information")  # the default: Procrustes, RFM
VARIANCE = "highest explained variance"


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
    return table(["steered by", *(f"{n} examples" for n in columns)], rows)


def controls_table(cells: Cells) -> str:
    """The default minus every control, paired by seed, one family of tests."""
    columns = sizes(cells, kind="table", task="demo")
    controls = ["unsteered", BEST_RANDOM, *(name for name in METHODS if name != PAPER)]
    best = max(random_scores(cells, "demo"), default=float("nan"))
    found = {}
    for n in columns:
        group = select(cells, kind="table", task="demo", size=n)
        default = over_seeds(group, of_method(PAPER))
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
        for name in (*OWN, PAPER):
            value = of_method(name)
            found[name, n] = difference(over_seeds(joint, value), over_seeds(choice, value))
    title = "{} examples".format
    return differences("all minus chosen", (*OWN, PAPER), columns, found, column_title=title)


def alone_table(cells: Cells) -> str:
    """What can be steered without any validation, and the default with it."""
    columns = [n for e, n in pair_groups(cells, "demo") if e == "bundled"]
    rows = []
    for title, kind, value in (
        ("the pair of lowest information", "pairs", of_single("lowest information")),
        ("the pair of highest information", "pairs", of_single("highest information")),
        ("a random pair", "pairs", of_single("random")),
        ("the pair of highest explained variance", "pairs", of_single(VARIANCE)),
        ("all layers together, lowest information", "joint", of_method(PAPER)),
        ("the layer that validation chooses, lowest information", "pairs", PRESENT),
    ):
        groups = [select(cells, kind=kind, task="demo", expert="bundled", size=n) for n in columns]
        rows.append([title, *(shown(mean_of(over_seeds(group, value))) for group in groups)])
    return table(["steered at", *(f"{n} examples" for n in columns)], rows)
