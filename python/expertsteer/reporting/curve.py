"""Effect against divergence, every method in one chart."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.comparison import ComparisonRow
from ..evaluation.evaluation import CurvePoint, Evaluation
from ..support.numbers import setting, unit
from . import charts
from .words import line

REACH = 9.0  # times the budget: what costs more is said, not drawn
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")


class Drawn(NamedTuple):
    """What the chart shows of an evaluation.

    Attributes:
        methods: by name, the default first; random: the random directions' curves.
        single: rows that have a divergence but no curve, such as a prompt.
        beyond: points that cost too much to be drawn, or are not numbers.
    """

    methods: dict[str, list[CurvePoint]]
    random: dict[str, list[CurvePoint]]
    single: list[ComparisonRow]
    beyond: int


def chosen_points(evaluation: Evaluation) -> Drawn:
    """What to draw, in the order of the comparison's rows."""
    comparison, free = evaluation.comparison, evaluation.comparison.measure != "kl"
    limit = (1.0 if free else 0.0) + REACH * (comparison.budget - free)
    kept: dict[str, list[CurvePoint]] = {}
    for name, points in evaluation.curves.items():
        finite = [p for p in points if math.isfinite(p.divergence) and math.isfinite(p.score)]
        kept[name] = [p for p in finite if p.divergence <= limit]
    order = [evaluation.method, *(row.name for row in comparison.rows)]
    order += list(evaluation.curves)
    names = [name for name in dict.fromkeys(order) if kept.get(name)]
    random = [r.name for r in comparison.rows if r.kind == "random"]
    drawn = {*random, *(row.name for row in comparison.random)}
    single = [
        row
        for row in comparison.rows
        if row.kind not in ("none", "random") and row.name not in kept
    ]
    shown = [row for row in single if math.isfinite(row.divergence) and row.divergence <= limit]
    beyond = sum(len(points) - len(kept[name]) for name, points in evaluation.curves.items())
    return Drawn(
        {name: kept[name] for name in names if name not in drawn},
        {name: kept[name] for name in names if name in drawn},
        shown,
        beyond + len(single) - len(shown),
    )


def draw_curve(evaluation: Evaluation, drawn: Drawn):
    """The matplotlib figure of the chart."""
    comparison = evaluation.comparison
    labels = len(drawn.methods) + len(drawn.single) + 3
    figure, axes = charts.new_figure(3.1 + 0.19 * labels)
    handles: dict[str, Any] = {}
    for i, (name, points) in enumerate(drawn.methods.items()):
        handles[name] = _line(axes, points, i, name == evaluation.method)
    _controls(axes, evaluation, drawn, handles)
    for i, row in enumerate(drawn.single, len(drawn.methods)):
        look = {"color": _colour(i), "marker": MARKERS[i % len(MARKERS)], "ms": 7, "ls": ""}
        handles[row.name] = axes.plot(row.divergence, row.score.mean, **look)[0]
    budget = axes.axvline(comparison.budget, color=charts.INK, lw=1.2, ls="--")
    handles[f"budget, {setting(comparison.budget)}"] = budget
    _scale(axes, 0.0 if comparison.measure == "kl" else 1.0)
    axes.set_xlabel(f"divergence from the unsteered model ({unit(comparison.measure)})")
    axes.set_ylabel("score")
    axes.grid(axis="y", color=charts.GRID, lw=0.8)
    axes.set_axisbelow(True)
    _legend(figure, handles)
    return figure


def _colour(i: int) -> str:
    """The first colour is the first method's alone; the others come round again."""
    others = charts.LINES[1:]
    return others[(i - 1) % len(others)] if i else charts.LINES[0]


def _line(axes, points: list[CurvePoint], i: int, default: bool):
    x, y = [p.divergence for p in points], [p.score for p in points]
    return axes.plot(
        x,
        y,
        color=_colour(i),
        marker=MARKERS[i % len(MARKERS)],
        ls=DASHES[i % len(DASHES)],
        lw=2.6 if default else 1.4,
        ms=5.5 if default else 4,
        zorder=4 if default else 3,
    )[0]


def _controls(axes, evaluation: Evaluation, drawn: Drawn, handles: dict[str, Any]) -> None:
    rows, random = evaluation.comparison.rows, evaluation.comparison.random
    unsteered = next((row for row in rows if row.kind == "none"), None)
    if unsteered is not None:
        handles[unsteered.name] = axes.axhline(
            unsteered.score.mean, color=charts.MUTED, lw=1.2, ls=":"
        )
    singly = {r.name: r for r in random}
    together = f"random directions ({len(random)})"
    for name, points in drawn.random.items():
        x, y = [p.divergence for p in points], [p.score for p in points]
        label = together if name in singly else name
        handles[label] = axes.plot(x, y, color=charts.GREY, lw=1.0, zorder=2)[0]
    dots = [r for r in random if math.isfinite(r.divergence)]
    if dots and not singly.keys() & drawn.random.keys():
        x, y = [r.divergence for r in dots], [r.score.mean for r in dots]
        handles[together] = axes.plot(x, y, "o", color=charts.GREY, ms=4, ls="", zorder=2)[0]
    row = evaluation.comparison.row(evaluation.method)
    if evaluation.method in drawn.methods and math.isfinite(row.divergence):
        low, high = row.score.mean - row.score.low, row.score.high - row.score.mean
        axes.errorbar(
            row.divergence,
            row.score.mean,
            yerr=[[max(low, 0.0)], [max(high, 0.0)]],
            color=charts.LINES[0],
            capsize=4,
            marker="o",
            ms=8,
            mfc=charts.PAPER,
            mew=2,
            zorder=5,
        )


def _scale(axes, free: float) -> None:
    """A root scale: divergence grows about as the square of the strength."""

    def root(x):
        return np.sign(np.asarray(x) - free) * np.sqrt(np.abs(np.asarray(x) - free))

    def square(y):
        return free + np.sign(y) * np.asarray(y) ** 2

    from matplotlib.ticker import FixedLocator, FuncFormatter

    bounds = axes.dataLim
    low, high = min(bounds.x0, free), max(bounds.x1, free + 1e-9)
    axes.set_xscale("function", functions=(root, square))
    left, right = root([low, high])
    margin = 0.03 * (right - left)
    axes.set_xlim(*square(np.array([left - margin, right + margin])))
    span = high - free
    step = 10 ** math.floor(math.log10(span))
    ends = [m * s for s in (step / 100, step / 10, step) for m in (1, 2, 5)]
    ticks, last = [free], 0.0
    for end in ends:  # at least an eighth of the axis apart
        if end <= span and math.sqrt(end / span) - last > 0.125:
            ticks.append(free + end)
            last = math.sqrt(end / span)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: setting(x)))


def _legend(figure, handles: dict[str, Any]) -> None:
    # Matplotlib leaves out labels that begin with "_", so names are set afterwards.
    places = [str(i) for i in range(len(handles))]
    legend = figure.legend(
        handles.values(), places, loc="outside lower left", frameon=False, handlelength=3.2
    )
    for text, name in zip(legend.get_texts(), handles):
        text.set_text(line(name, 50))
