"""``expertsteer demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._common import Json, Seed, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Where vectors, figures and pictures go.")] = Path(
        "demo-output"
    ),
    seed: Seed = 0,
    controls: Annotated[
        bool, typer.Option("--controls", help="Every method and control at one price instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Steer a small bundled target with a small bundled expert, beside its controls."""
    from ..demo.controls import run_controls
    from ..demo.run import run_demo

    result = (run_controls if controls else run_demo)(out, seed=seed, quiet=as_json)
    if as_json:
        print_json(result.to_dict())
