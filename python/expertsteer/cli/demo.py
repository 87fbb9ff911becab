"""``expertsteer demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..support.console import SafeConsole
from .options import Json, Seed, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Where vectors, figures and pictures go.")] = Path(
        "demo-output"
    ),
    seed: Seed = 0,
    files: Annotated[
        Path | None,
        typer.Option(help="Only write the models and texts here, to try other commands on."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Steer a small bundled target with a small bundled expert, beside its controls."""
    if files is not None:
        _write(files, as_json)
        return
    from ..demo.run import run_demo

    result = run_demo(out, seed=seed, quiet=as_json)
    if as_json:
        print_json(result.to_dict())


def _write(folder: Path, as_json: bool) -> None:
    from ..demo.files import write_files

    write_files(folder)
    written = sorted(path.name for path in folder.iterdir())
    if as_json:
        print_json({"folder": str(folder), "files": written})
    else:
        SafeConsole().print(f"{folder}: {', '.join(written)}")
