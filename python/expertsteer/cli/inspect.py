"""``expertsteer inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..support.console import SafeConsole
from ..support.paths import local_path
from .options import Json, show


def inspect(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of steering vectors.")],
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the layer pairs into this PNG (plot extra).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a folder holds: steering vectors, where they came from, and the layer pairs."""
    from ..vectors.vectors import SteeringVectors

    pairing = _pairing_in(folder)
    if plot is not None:
        _plot_pairs(pairing, folder, plot)
    if pairing is not None and not as_json:
        from ..reporting.heat_map import heat_map_text

        if pairing.matrix is not None:
            SafeConsole().print(heat_map_text(pairing), "")
        if not (local_path(folder) / "steering_vectors.safetensors").is_file():
            return
    show(SteeringVectors.from_pretrained(folder), folder, as_json)


def _pairing_in(folder: str):
    from ..pairing.layer_pairs import LayerPairing

    if not (local_path(folder) / "layer_pairing.safetensors").is_file():
        return None
    return LayerPairing.from_pretrained(folder)


def _plot_pairs(pairing, folder: str, path: Path) -> None:
    from ..reporting.charts import can_plot, picture
    from ..reporting.pairs import draw_pairs

    if pairing is None or pairing.matrix is None:
        raise ValueError(f"folder {folder!r} holds no matrix of layer pairs to plot")
    if not can_plot():
        raise ValueError("--plot needs matplotlib: pip install 'expertsteer[plot]'")
    picture(local_path(path), draw_pairs, pairing)
