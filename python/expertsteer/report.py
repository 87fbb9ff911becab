"""Tables and pictures of measured steering: what a person looks at after a run.

Pictures need the ``plot`` extra (matplotlib), which is imported only when one is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.table import Table
from torch import Tensor

from .artifacts import LayerPairing

if TYPE_CHECKING:
    from .comparison import Comparison
    from .demo.run import Row
    from .statistics import PairedTest

INK, MUTED, ACCENT = "#1c2733", "#6b7885", "#c4502b"
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
        a = row.accuracy
        table.add_row(
            row.name,
            f"{a.mean:.2f} [{a.low:.2f}, {a.high:.2f}]".replace("0.", "."),
            f"{row.probability.mean:.2f}".replace("0.", "."),
            f"{row.other_loss:.2f}",
            f"{row.plain_loss:.2f}",
            ", ".join(map(str, row.layers)) or "-",
            "-" if row.strength is None else f"{row.strength:g}",
            style="bold" if row.is_default else None,
        )
    return table


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Every method at the same divergence budget: score, price, chosen settings, tests."""
    unit = "nats per token" if comparison.measure == "kl" else "perplexity ratio"
    family = max((t.family for r in comparison.rows for t in r.against.values()), default=1)
    caption = (
        f"budget {comparison.budget:g} {unit}; [ ] 95 % bootstrap intervals; p after Holm's "
        f"correction over {family} tests, ↓ where the method is lower; * over the budget"
    )
    table = Table(title=title, caption=caption)
    table.add_column("steered by", min_width=22)
    names = [*comparison.rows[0].prices]
    for name in ("score", "diver-\ngence", *names, "layers", "strength"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("p, un-\nsteered", "p, best\nrandom"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        mean, low, high = row.score
        p = [_p_value(test) for test in row.against.values()]
        setting = "-" if row.strength is None else f"{row.strength:.2f}"
        setting = f"{row.extra_tokens} tokens" if row.prompt else setting
        table.add_row(
            row.name,
            f"{mean:.2f} [{low:.2f}, {high:.2f}]".replace("0.", "."),
            f"{row.divergence:.3f}" + ("" if row.within else "*"),
            *(f"{row.prices[name]:.2f}" for name in names),
            ", ".join(map(str, row.layers)) or "-",
            setting,
            *(p or ["-", "-"]),
        )
    return table


def markdown_rows(comparison: Comparison) -> str:
    """Every method's score, divergence, prices, settings and p-values as a markdown table."""
    names = [*comparison.rows[0].prices]
    head = ["steered by", "score [95 %]", "divergence", *names, "layers", "strength"]
    head += ["p, unsteered", "p, best random"]
    lines = [head, ["---"] * len(head)]
    for row in comparison.rows:
        mean, low, high = row.score
        setting = "-" if row.strength is None else f"{row.strength:.3f}"
        cells = [row.name, f"{mean:.3f} [{low:.3f}, {high:.3f}]", f"{row.divergence:.3f}"]
        cells[-1] += "" if row.within else " (over the budget)"
        cells += [f"{row.prices[name]:.3f}" for name in names]
        cells += [", ".join(map(str, row.layers)) or "-"]
        cells += [f"{row.extra_tokens} tokens" if row.prompt else setting]
        lines.append(cells + ([_p_value(test) for test in row.against.values()] or ["-", "-"]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _p_value(test: PairedTest) -> str:
    p = test.p_value if test.adjusted is None else test.adjusted
    return ("<.0001" if p < 1e-4 else f"{p:.2g}") + (" ↓" if test.difference.mean < 0 else "")


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
    from matplotlib.patches import Rectangle

    rows, columns = matrix.shape
    figure, axes = _figure(max(4.2, 0.8 * columns + 2.2), max(3.2, 0.8 * rows + 1.6))
    image = axes.imshow(matrix.numpy(), cmap="Blues", aspect="equal")
    middle = float(matrix.min() + matrix.max()) / 2
    for e in range(rows):
        for t in range(columns):
            if matrix.numel() <= 144:  # past a dozen layers the numbers would overlap
                colour = "white" if matrix[e, t] > middle else INK
                axes.text(t, e, f"{matrix[e, t]:.1f}", ha="center", va="center", color=colour)
    for pair in pairing:
        corner = (
            list(target_layers).index(pair.target_layer) - 0.5,
            list(expert_layers).index(pair.expert_layer) - 0.5,
        )
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ACCENT, linewidth=2.5))
    axes.set_xticks(range(columns), target_layers)
    axes.set_yticks(range(rows), expert_layers)
    axes.set_xlabel("target layer")
    axes.set_ylabel("expert layer")
    axes.set_title(f"mutual information, pairs by rule “{pairing.rule}”", fontsize=10, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, label="nats", fraction=0.046, pad=0.04).outline.set_visible(False)
    figure.savefig(path, dpi=160)


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
    figure.savefig(path, dpi=160)


def _figure(width: float, height: float, columns: int = 1):
    # The object interface: no global state, and no window system is ever asked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, columns)
