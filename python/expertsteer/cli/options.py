"""What the commands share: options, and how input is read and results are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..support.console import SafeConsole
from ..support.paths import local_path
from ..support.reading import ArtifactError, read_text
from ..support.text import json_line

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one json document instead of text.")]
Position = Annotated[str, typer.Option(help="last, mean, or a token index.")]
BatchSize = Annotated[int, typer.Option(help="Examples per forward pass.")]
MaxLength = Annotated[int | None, typer.Option(help="Truncate longer examples.")]
Device = Annotated[str | None, typer.Option(help="For example cuda.")]
Dtype = Annotated[str | None, typer.Option(help="For example bfloat16.")]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code that a model's repository brings."
    ),
]
LayersPath = Annotated[
    str | None, typer.Option(help="Path of the layer list, if it is not found by itself.")
]
OnlyLayers = Annotated[str | None, typer.Option(help="Only these, for example 3,5,8-12.")]
Columns = Annotated[
    str | None, typer.Option(help="Names in the file, for example positive=chosen,label=y.")
]
CheckModel = Annotated[bool, typer.Option(help="Refuse vectors of another model.")]


def show(vectors, folder: Path | str, as_json: bool) -> None:
    """What a folder of steering vectors holds, as a table or as json."""
    from ..reporting.vectors_table import vectors_table

    try:
        shown = vectors.describe() if as_json else vectors_table(vectors, str(folder))
    except ArtifactError as error:  # of the metadata, which know no file
        raise ArtifactError(f"{folder}: {error}") from error
    if as_json:
        print_json({"folder": str(folder)} | shown)
    else:
        SafeConsole().print(shown)


def print_json(document: dict[str, Any]) -> None:
    """One strict json document on standard output."""
    from ..support.artifact_files import to_json

    typer.echo(json_line(to_json(document)))


def integer(name: str, text: str) -> int:
    """``text`` as a whole number; the error names the option."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} must be whole numbers, came {text!r}") from None


def layers_of(text: str | None) -> list[int] | None:
    """``3,5,8-10`` as numbers; the error names the option."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [integer("layers", first), integer("layers", last if dash else first)]
        if ends[1] < ends[0]:
            raise ValueError(f"layers: a range goes from its lower to its higher, came {part!r}")
        found += range(ends[0], ends[1] + 1)
    return list(dict.fromkeys(found))


def position_of(text: str) -> str | int:
    """``last`` and ``mean`` as they are, anything else as a number; the error names the option."""
    return text if text in ("last", "mean") else integer("position", text)


def columns_of(text: str | None) -> dict[str, str] | None:
    """``field=column,field=column`` as a dictionary; the error names the option."""
    if text is None:
        return None
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ValueError(
            "columns must be field=column pairs such as positive=chosen,negative=rejected, "
            f"came {text!r}"
        )
    return dict(pairs)


def lines(name: str, path: Path) -> list[str]:
    """The texts of a file, one a line; the error names the option."""
    path = local_path(path, name)
    if not path.is_file():
        raise ValueError(f"{name} must name a text file, there is none at {path}")
    found = [line for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{name}: {path} holds no text; give one text a line")
    return found


def torch_dtype(name: str | None):
    """The torch type of that name; ``None`` stays ``None``."""
    import torch

    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype such as bfloat16 or float32, came {name!r}")
    return dtype
