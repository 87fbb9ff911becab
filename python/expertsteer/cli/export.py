"""``expertsteer export`` and ``expertsteer import``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..support.console import SafeConsole
from ..support.paths import folder_or_id, local_path
from . import options
from .formats import WRITERS, Asked, Format

Convention = Literal["zero_based", "one_based"]


def export(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of steering vectors.")],
    format: Annotated[Format, typer.Option(help="For which program; see the documentation.")],
    out: Annotated[Path, typer.Option(help="The new folder (checkpoint, sglang), or the file.")],
    strength: Annotated[
        str | None,
        typer.Option(
            help="A number, or auto: as calibrated. Default: auto where there "
            "is a calibration; else 1 for gguf, which the reading program scales, and none for "
            "the others."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Path or Hub id of the model (checkpoint, lm-eval).")
    ] = None,
    layers: options.OnlyLayers = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    decoder_layers: options.LayersPath = None,
    check_model: options.CheckModel = True,
    as_json: options.Json = False,
) -> None:
    """Write steering vectors for a program that does not know this package."""
    from ..vectors.vectors import SteeringVectors

    vectors = SteeringVectors.from_pretrained(folder)
    if layers is not None:
        vectors = vectors.select(options.layers_of(layers))
    if format == "npz":
        if strength is not None or model is not None:
            raise ValueError(
                "strength and model have no place in npz, which keeps vectors and scales as they "
                "are; leave --strength and --model out"
            )
        amount = 1.0
    else:
        amount = _strength(strength, vectors, format)
    # What is told is given to programs that know no ~.
    out, model = local_path(out, "out"), None if model is None else folder_or_id(model, "model")
    asked = Asked(model, revision, decoder_layers, check_model, trust_remote_code)
    written = WRITERS[format](vectors, out, amount, asked)
    document = {
        "out": str(out),
        "format": format,
        "layers": list(vectors.layers),
        "strength": None if format == "npz" else amount,
        "content": written.content,
        "checked": written.checked,
        "use": written.use,
    }
    if as_json:
        options.print_json(document)
        return
    console = SafeConsole(soft_wrap=True)
    console.print(f"wrote    {out}: {written.content}")
    console.print(f"checked  {written.checked}")
    console.print(f"use      {written.use}")


def import_vectors(
    file: Annotated[Path, typer.Argument(help="Control vector (.gguf) or archive (.npz).")],
    out: Annotated[Path, typer.Option(help="Folder for the steering vectors.")],
    layer_convention: Annotated[
        Convention, typer.Option(help="Whether the file's 0 or its 1 is the first block (gguf).")
    ] = "zero_based",
    as_json: options.Json = False,
) -> None:
    """Read vectors from a file of another program: a control vector or a NumPy archive."""
    file = local_path(file, "file")
    if file.suffix == ".gguf":
        from ..export.gguf import import_gguf

        vectors = import_gguf(file, layer_convention=layer_convention)
    elif file.suffix == ".npz":
        from ..export.npz import import_npz

        if layer_convention != "zero_based":
            raise ValueError("layer_convention is for gguf files; an npz archive counts from 0")
        vectors = import_npz(file)
    else:
        raise ValueError(f"file {str(file)!r} must end in .gguf or .npz")
    vectors.save_pretrained(out)
    options.show(vectors, out, as_json)


def _strength(text: str | None, vectors, format: Format) -> float:
    from ..steering.strengths import resolved_strength
    from ..vectors.metadata import CALIBRATION_KEY

    value: Any = text
    if text is None:
        if vectors.metadata.get(CALIBRATION_KEY):
            value = "auto"
        elif format in ("gguf", "repeng-gguf"):
            value = 1.0
        else:
            raise ValueError(
                f"strength must be given for {format}, since these vectors hold no "
                "calibration: --strength NUMBER (0.1 to 1 is usual), or fit with --neutral"
            )
    else:
        with contextlib.suppress(ValueError):
            value = float(text)
    return resolved_strength(value, {0: vectors}, "add")
