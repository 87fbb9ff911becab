"""The pictures of ``docs/study.md``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.study.rules import PAIRS, rows_of, summary
from benchmarks.study.tables import (
    Cells,
    of_method,
    over_seeds,
    random_scores,
    select,
    sizes,
)
from expertsteer.evaluation.methods import PAPER

PICTURED = 200  # examples
LINES = {
    PAPER: ("expert: Procrustes, lowest pairs", "tab:red", "o"),
    "expert: Procrustes, highest pairs": ("expert: Procrustes, highest pairs", "tab:orange", "v"),
    "expert: ridge": ("expert: ridge, lowest pairs", "tab:purple", "s"),
    "expert: bare auto-encoder": ("expert: bare auto-encoder", "tab:brown", "x"),
    "target's own RFM": ("target's own RFM", "tab:blue", "^"),
    "target's own mean difference": ("target's own mean difference", "tab:cyan", "D"),
    "expert: shuffled labels": ("expert: shuffled labels", "tab:gray", "+"),
}


def draw(cells: Cells, folder: Path) -> None:
    """``study_sizes.png`` and ``study_pairs.png``, where there is something to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if select(cells, kind="table", task="demo"):
        figure = _by_size(pyplot, cells)
        figure.savefig(folder / "study_sizes.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    if select(cells, kind="pairs"):
        figure = _pairs(pyplot, cells)
        figure.savefig(folder / "study_pairs.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)


def _by_size(pyplot, cells: Cells):
    """Test accuracy over the number of examples, mean and interval over seeds."""
    columns = sizes(cells, kind="table", task="demo")
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for shift, (name, (label, colour, marker)) in enumerate(LINES.items()):
        found = [
            summary(
                list(
                    over_seeds(
                        select(cells, kind="table", task="demo", size=n), of_method(name)
                    ).values()
                )
            )
            for n in columns
        ]
        places = [n * 1.02 ** (shift - 3) for n in columns]
        low, high = [m.value - m.low for m in found], [m.high - m.value for m in found]
        values = [m.value for m in found]
        axes.errorbar(places, values, (low, high), label=label, color=colour, marker=marker, lw=1)
    drawn = random_scores(cells, "demo")
    if drawn:
        axes.axhspan(min(drawn), max(drawn), color="0.9", label=f"{len(drawn)} random directions")
    axes.set(xscale="log", xticks=columns, xlabel="training examples", ylabel="accuracy on test")
    axes.set_xticks(columns, map(str, columns))
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _pairs(pyplot, cells: Cells):
    """Information against effect: one point per layer pair, its mean over seeds."""
    groups = {}
    for cell in select_pairs(cells):
        groups.setdefault((cell["task"], cell["expert"]), []).append(cell)
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    size = (2.6 * columns, 2.6 * lines)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=size, layout="constrained", squeeze=False
    )
    for panel in axes.flat[len(groups) :]:
        panel.axis("off")
    for panel, ((task, expert), group) in zip(axes.flat, groups.items()):
        points: dict[tuple, list] = {}
        for cell in group:
            for row in rows_of(cell, PAIRS):
                e, (t,) = row["expert_layer"], row["layers"]
                points.setdefault((e, t), []).append((cell["nats"][e][t], row["probability"]))
        means = {pair: [sum(v) / len(v) for v in zip(*values)] for pair, values in points.items()}
        layers = sorted({t for _, t in means})
        for layer in layers:
            chosen = [means[pair] for pair in means if pair[1] == layer]
            panel.scatter(*zip(*chosen), s=16, label=f"{layer}")
        panel.set_title(f"{task}: {expert}", fontsize=8)
        panel.tick_params(labelsize=7)
    fullest = max(axes.flat[: len(groups)], key=lambda panel: len(panel.collections))
    handles, labels = fullest.get_legend_handles_labels()
    figure.legend(
        handles, labels, title="target layer", fontsize=7, title_fontsize=7, loc="outside right"
    )
    figure.supxlabel("information between the layers, nats", fontsize=9)
    figure.supylabel("probability of the wanted answer", fontsize=9)
    return figure


def select_pairs(cells: Cells) -> list[dict]:
    """The pair cells of every task, at the largest size up to `PICTURED`."""
    found = []
    for task in ("demo", "early", "stories"):
        counts = [n for n in sizes(cells, kind="pairs", task=task) if n <= PICTURED]
        found += select(cells, kind="pairs", task=task, size=max(counts)) if counts else []
    return found
