"""Information between all layer pairs, the chosen ones framed."""

from __future__ import annotations

import math

import numpy as np

from ..pairing.layer_pairs import LayerPairing
from ..support.numbers import MINUS, NONE, fixed
from . import charts
from .words import line

SMALLEST_LETTER = 7.5  # points: below, numbers in the cells cannot be read


def can_draw(pairing: LayerPairing | None) -> bool:
    """Whether there is a matrix with at least one number."""
    if pairing is None or pairing.matrix is None:
        return False
    return bool(pairing.matrix.isfinite().any())


def letter_size(pairing: LayerPairing) -> float:
    """Points of a number in a cell of the heat map."""
    inches = 3.4 / pairing.matrix.shape[1]
    return min(10.0, 72 * inches * 0.33)


def has_numbers(pairing: LayerPairing) -> bool:
    """Whether the cells are large enough for their numbers."""
    return letter_size(pairing) >= SMALLEST_LETTER and pairing.matrix.shape[0] <= 40


def draw_pairs(pairing: LayerPairing):
    """The matplotlib figure of the heat map."""
    matrix = pairing.matrix.detach().double().cpu().numpy()
    matrix = np.where(np.isfinite(matrix), matrix, np.nan)
    rows, columns = matrix.shape
    cell = min(3.4 / columns, 0.7)
    figure, axes = charts.new_figure(min(max(cell * rows, 1.2), 9.0) + 1.5)
    image, *_ = _both(axes, matrix)
    if has_numbers(pairing):
        _numbers(axes, pairing, matrix)
    _frames(axes, pairing, min(cell * 72, 54))
    for axis, layers in ((axes.xaxis, pairing.target_axis), (axes.yaxis, pairing.expert_axis)):
        step = max(1, math.ceil(len(layers) / 12))
        axis.set_ticks(range(0, len(layers), step), [str(i) for i in layers[::step]])
    axes.set_xlabel("target layer")
    axes.set_ylabel("expert layer")
    axes.set_title(f"framed: the {len(pairing)} pairs by rule “{line(pairing.rule, 30)}”", size=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _colour_bar(figure, image)
    return figure


def _both(axes, values: np.ndarray, **options):
    """The same picture in the colours of a light and of a dark page, of which CSS shows one."""
    shown = {"aspect": "auto", "interpolation": "none"} | options
    images = [axes.imshow(values, cmap=colours, **shown) for colours in _maps()]
    for image, gid in zip(images, ("cells-light", charts.DARK)):
        image.set_gid(gid)
    return images


def _colour_bar(figure, image) -> None:
    bar = figure.colorbar(
        image, label="mutual information (nats)", orientation="horizontal", aspect=30, pad=0.03
    )
    bar.outline.set_visible(False)
    bar.solids.set_visible(False)
    low, high = bar.ax.get_xlim()
    _both(bar.ax, np.linspace(low, high, 256)[None], extent=(low, high, *bar.ax.get_ylim()))


def _maps():
    """Colours for a light and for a dark page, each from near the paper to far from it."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    # Without the palest end, so that the map's edge shows on white paper.
    light = ListedColormap(colormaps["Blues"](np.linspace(0.08, 1.0, 256)))
    dark = ("#1b2937", "#1f4f7d", "#3f86c6", "#b4d8fd")
    return light, LinearSegmentedColormap.from_list("dark", dark)


def _numbers(axes, pairing: LayerPairing, matrix: np.ndarray) -> None:
    low, high, maps = np.nanmin(matrix), np.nanmax(matrix), _maps()
    effects = {(e, t): value for e, t, value in pairing.effects}
    size, largest = letter_size(pairing), np.nanmax(np.abs(matrix))
    digits = 2 if largest < 10 else 1 if largest < 100 else 0
    for row, e in enumerate(pairing.expert_axis):
        for column, t in enumerate(pairing.target_axis):
            value = matrix[row, column]
            share = (value - low) / max(high - low, 1e-300)
            text = NONE if np.isnan(value) else fixed(value, digits).replace("-", MINUS)
            both = (e, t) in effects
            look = {"ha": "center", "color": _letters([colours(share) for colours in maps])}
            axes.text(column, row, text, va="bottom" if both else "center", size=size, **look)
            if both:
                text = fixed(effects[e, t], signed=True).replace("-", MINUS)
                axes.text(column, row, text, va="top", size=0.85 * size, weight="bold", **look)


def _letters(cells: list[tuple[float, ...]]) -> str:
    """White or black, whichever stands out more from a cell of a light and of a dark page."""
    return charts.LETTERS[tuple(_luminance(cell) < 0.179 for cell in cells)]


def _luminance(cell: tuple[float, ...]) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in cell[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _frames(axes, pairing: LayerPairing, points: float) -> None:
    """Around a cell where it is large, else a square marker that is larger than the cell."""
    from matplotlib.patches import Rectangle

    for pair in pairing:
        if pair.target_layer not in pairing.target_axis:
            continue
        if pair.expert_layer not in pairing.expert_axis:
            continue
        x = pairing.target_axis.index(pair.target_layer)
        y = pairing.expert_axis.index(pair.expert_layer)
        if points >= 12:
            corner = (x - 0.46, y - 0.46)
            options = {"fill": False, "edgecolor": charts.ACCENT, "linewidth": 2.6}
            axes.add_patch(Rectangle(corner, 0.92, 0.92, **options))
            continue
        for colour, width in (("#ffffff", 3.2), (charts.ACCENT, 1.6)):
            axes.plot(
                x, y, "s", ms=max(8, points + 5), mfc="none", mec=colour, mew=width, clip_on=False
            )
