"""The report of an evaluation: one page that needs nothing else, pictures, json and markdown."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from ..evaluation.evaluation import Evaluation
from ..support.artifact_files import to_json
from ..support.numbers import count
from ..support.paths import local_path
from ..support.versions import VERSION
from ..support.writing import made_folder, write_text
from . import charts
from .charts import can_plot
from .curve import chosen_points, draw_curve
from .markdown import markdown_table
from .pairs import can_draw, draw_pairs, has_numbers
from .view import page_values
from .words import finite

__all__ = ["markdown_table", "write_report"]

PAGE, DOCUMENT, TABLE = "index.html", "evaluation.json", "table.md"
CURVE, PAIRS = "strength_curve.png", "layer_pairs.png"


def write_report(evaluation: Evaluation, folder: str | os.PathLike) -> Path:
    """Write the report into ``folder`` (made if absent) and return the path of its page.

    ``index.html`` loads nothing and runs no script. Beside it stand ``evaluation.json`` (all
    figures and every example; NaN and infinity as null), ``table.md`` and, with matplotlib,
    ``strength_curve.png`` and ``layer_pairs.png``. Files of these names from an earlier report are
    replaced or removed. Equal evaluations give equal files.

    Raises:
        ValueError: ``evaluation.method`` is no row of the comparison, or one without tests; or
            values that json cannot hold.
        ArtifactError: the folder cannot be written, or the disk is full; the figures
            (``evaluation.json``) are written first.
    """
    values = page_values(evaluation)  # before anything is written: it raises on a wrong method
    document = to_json(finite(evaluation.to_dict())) + "\n"
    table = markdown_table(evaluation.comparison)
    folder = made_folder(local_path(folder, "folder"))
    # The figures first: what cannot be drawn, or has no room any more, must not cost them.
    write_text(folder / DOCUMENT, document)
    write_text(folder / TABLE, table)
    page = _template().render(**values, **_charts(evaluation, folder), version=VERSION)
    write_text(folder / PAGE, page)
    return folder / PAGE


def _charts(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The charts as SVG for the page, written as PNG beside it."""
    drawn, pairing = chosen_points(evaluation), evaluation.pairing
    found: dict[str, Any] = {"plot": can_plot(), "beyond": drawn.beyond}
    wanted = {
        CURVE: (draw_curve, (evaluation, drawn)) if drawn.methods else None,
        PAIRS: (draw_pairs, (pairing,)) if can_draw(pairing) else None,
    }
    for name, call in wanted.items():
        key = name.removesuffix(".png")
        found[key] = None
        if call is None or not found["plot"]:
            (folder / name).unlink(missing_ok=True)
        else:
            found[key] = charts.saved(folder / name, call[0], *call[1])
    found["numbers"] = can_draw(pairing) and has_numbers(pairing)
    found["matrix"] = can_draw(pairing)
    return found


@cache
def _template():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count
    return environment.get_template("page.html.j2")
