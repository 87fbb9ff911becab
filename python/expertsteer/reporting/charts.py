"""The report's charts: one matplotlib figure each, saved as PNG and as SVG for the page.

In the SVG every colour is a CSS variable and every letter is text, so a chart follows the page into
dark mode and can be read aloud, searched and copied.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..support.writing import replacing

WIDTH = 4.0  # inches, little enough that letters stay readable on a phone
INK, MUTED, GRID, ACCENT, GREY = "#1c2733", "#5b6770", "#e4e8ec", "#b8431f", "#98a2ab"
PAPER = "#fefefe"
LINES = ("#b7421e", "#1f6fb5", "#2f7d4f", "#8447a8", "#8a6100", "#00788a", "#b03a75", "#4b5a9b")
DARK = "cells-dark"  # of what the PNG leaves out and a dark page shows
# By whether letters are white on a light and on a dark page; in the PNG they are as good as that.
LETTERS = {
    (True, True): "#fffffe",
    (True, False): "#fffffd",
    (False, True): "#000001",
    (False, False): "#000002",
}
_ROLES = {INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", GREY: "grey", PAPER: "paper"}
_VARIABLES = {c: "on-" + "".join("bw"[w] for w in white) for white, c in LETTERS.items()}
_VARIABLES |= _ROLES | {colour: f"c{i}" for i, colour in enumerate(LINES, 1)}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a "$" in a method's name is no formula
}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def picture(path: Path, draw: Callable[..., Any], *args: Any) -> None:
    """Draw a chart and write it to a file of the kind that its name tells, by default PNG."""
    with _styled(path.stem):
        _write(draw(*args), path)


def saved(path: Path, draw: Callable[..., Any], *args: Any) -> str:
    """Draw a chart, write it as PNG to ``path`` and return it as SVG for the page."""
    with _styled(path.stem):
        figure = draw(*args)
        _write(figure, path)
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), path.stem.replace("_", "-"))


def new_figure(height: float):
    """An empty figure of the page's width and its axes."""
    # The object interface: no global state, and no window system is ever asked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def inline(svg: str, name: str) -> str:
    """Matplotlib's SVG file as an element that can stand in a page beside others.

    Without prologue, metadata and style (its ``*`` would match the whole page), with the ids made
    its own, and with the palette's colours as CSS variables.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    # Ids of both bars and both maps would be the same; what CSS asks for becomes a class.
    svg = re.sub(r'\bid="(cells-\w+)"', r'class="\1"', svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"'DejaVu Sans'(, [-'\w ]+)*", "var(--font)", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", '<svg class="chart" aria-hidden="true" focusable="false"', 1).strip()


def _write(figure: Any, path: Path) -> None:
    kind = path.suffix[1:].lower() or "png"
    metadata = {"Software": None} if kind == "png" else None
    for artist in figure.findobj(lambda a: a.get_gid() == DARK):
        artist.set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, format=kind, metadata=metadata)
    for artist in figure.findobj(lambda a: a.get_gid() == DARK):
        artist.set_visible(True)


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # A method's name may hold letters that the PNG's font lacks; the page has them.
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from font.*")
        yield
