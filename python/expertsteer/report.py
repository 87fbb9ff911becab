"""Tables and pictures of measured steering: what a person looks at after a run.

Pictures need the ``plot`` extra (matplotlib), which is imported only when one is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.table import Table
from torch import Tensor

from .pairing.layer_pairs import LayerPairing
from .support.numbers import fixed, interval, p_value, setting, unit
from .support.paths import local_path
from .support.writing import replacing

if TYPE_CHECKING:
    from .comparison import Comparison
    from .demo.run import Row
    from .statistics import PairedTest

INK, MUTED = "#1c2733", "#6b7885"
LINES = ("#c4502b", "#2f6db3", "#3f8f5b", "#8a5aa8", "#8d8d8d")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def results_table(rows: Sequence[Row], title: str) -> Table:
    """Every method with its accuracy, its price and the settings validation chose."""
    table = Table(title=title, caption="[ ] 95 % bootstrap intervals; losses in nats per token")
    table.add_column("steered by", min_width=22)
    for name in ("accuracy", "prob.", "loss,\nother", "loss,\nplain", "layers", "strength"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            interval(row.accuracy, _score),
            _score(row.probability.mean),
            fixed(row.other_loss),
            fixed(row.plain_loss),
            ", ".join(map(str, row.layers)) or "-",
            setting(row.strength),
            style="bold" if row.is_default else None,
        )
    return table


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Every method at the same divergence budget: score, price, chosen settings, tests."""
    family = max((t.family for r in comparison.rows for t in r.against.values()), default=1)
    caption = (
        f"budget {setting(comparison.budget)} {unit(comparison.measure)}; [ ] 95 % bootstrap "
        f"intervals; p after Holm's correction over {family} tests, ↓ where the method is lower; "
        "* over the budget"
    )
    table = Table(title=title, caption=caption)
    table.add_column("steered by", min_width=22)
    names = [*comparison.rows[0].prices]
    for name in ("score", "diver-\ngence", *names, "layers", "strength"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("p, un-\nsteered", "p, best\nrandom"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        p = [_p_value(test) for test in row.against.values()]
        chosen = f"{row.extra_tokens} tokens" if row.prompt else fixed(row.strength)
        table.add_row(
            row.name,
            interval(row.score, _score),
            fixed(row.divergence, 3) + ("" if row.within else "*"),
            *(fixed(row.prices[name]) for name in names),
            ", ".join(map(str, row.layers)) or "-",
            chosen,
            *(p or ["-", "-"]),
        )
    return table


def _p_value(test: PairedTest) -> str:
    return p_value(test) + (" ↓" if test.difference.mean < 0 else "")


def _score(value: float) -> str:
    return fixed(value, bare=True)


def heat_map(
    path: str | os.PathLike,
    matrix: Tensor,
    pairing: LayerPairing,
    expert_layers: Sequence[int],
    target_layers: Sequence[int],
) -> None:
    """Write a PNG of the information between all layer pairs, the chosen pairs framed.

    Args:
        matrix: ``[L_E, L_T]`` in nats; rows and columns belong to the given layers.
    """
    from .report_page import charts
    from .report_page.pairs import draw_pairs

    layers = {"expert_axis": tuple(expert_layers), "target_axis": tuple(target_layers)}
    drawn = replace(pairing, matrix=matrix, floor=None, **layers)
    charts.picture(local_path(path), draw_pairs, drawn)


def strength_curve(
    path: str | os.PathLike,
    strengths: Sequence[float],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    chance: float,
) -> None:
    """Write a PNG of effect and price against strength, one line per method.

    Args:
        curves: name -> (accuracy, loss on the other dialect) per strength.
        chance: accuracy without steering.
    """
    figure, (left, right) = _figure(9.0, 3.8, columns=2)
    for (name, points), colour in zip(curves.items(), LINES):
        for axes, values in zip((left, right), zip(*points)):
            axes.plot(strengths, values, color=colour, label=name, linewidth=1.8, marker="o", ms=3)
    left.axhline(chance, color=MUTED, linewidth=1, linestyle=":", label="unsteered")
    left.set_ylabel("accuracy of the specialist's answer")
    left.set_ylim(0, 1.02)
    left.set_title("effect", fontsize=10, color=INK)
    right.set_ylabel("loss on the other dialect (nats per token)")
    right.set_title("price", fontsize=10, color=INK)
    for axes in (left, right):
        axes.set_xlabel("strength (median norms)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
    left.legend(frameon=False, fontsize=8)
    with replacing(local_path(path)) as temporary:
        figure.savefig(temporary, dpi=160)


def _figure(width: float, height: float, columns: int = 1):
    # The object interface: no global state, and no window system is ever asked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, columns)
