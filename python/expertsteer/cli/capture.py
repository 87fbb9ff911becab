"""``expertsteer capture``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..support.console import SafeConsole
from ..support.numbers import count as thousands
from . import options


def capture(
    model: Annotated[str, typer.Option(help="Path or Hub id of the model to read.")],
    contrast: Annotated[Path, typer.Option(help="jsonl or parquet contrast set; never held.")],
    out: Annotated[Path, typer.Option(help="Folder for the states; the same again resumes.")],
    layers: options.OnlyLayers = None,
    position: options.Position = "last",
    batch_size: options.BatchSize = 16,
    max_length: options.MaxLength = None,
    columns: options.Columns = None,
    shard_examples: Annotated[
        int | None, typer.Option(help="Examples per file; by default up to 64 MiB or 1024.")
    ] = None,
    states_dtype: Annotated[
        str | None, typer.Option(help="Of the states; by default the model's.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For example cuda; auto or tensor_parallel if large.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the model, for example bfloat16.")] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    decoder_layers: options.LayersPath = None,
    as_json: options.Json = False,
) -> None:
    """Read MODEL's hidden states over a contrast set into a folder, from where it stopped.

    Several processes share the work: torchrun --nproc-per-node 8 -m expertsteer capture ...
    """
    from ..contrast.stream import ContrastStream
    from ..models.loading import load
    from ..states.on_disk import capture_to
    from ..support.ranks import ranks_of_torchrun

    chosen, position = options.layers_of(layers), options.position_of(position)
    dtype, states_dtype = options.torch_dtype(dtype), options.torch_dtype(states_dtype)
    stream = ContrastStream.from_file(contrast, options.columns_of(columns))
    with ranks_of_torchrun() as ranks:
        ranks.first(stream.require_file)  # before a model is loaded
        network, tokenizer = load(
            model,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        stored = capture_to(
            out,
            network,
            tokenizer,
            stream,
            layers=chosen,
            position=position,
            batch_size=batch_size,
            dtype=states_dtype,
            max_length=max_length,
            decoder_layers=decoder_layers,
            shard_examples=shard_examples,
        )
        if ranks.rank == 0:
            _show(stored, out, as_json)


def _show(stored, out: Path, as_json: bool) -> None:
    count, examples, width = stored.shape
    if as_json:
        options.print_json(
            {
                "folder": str(out),
                "examples": examples,
                "layers": stored.layers,
                "width": width,
                "dtype": str(stored.dtype).removeprefix("torch."),
                "shards": len(stored.paths),
                "model": stored.model,
            }
        )
        return
    SafeConsole(soft_wrap=True).print(
        f"{out}: {thousands(examples)} examples x {count} layers x {width}, {len(stored.paths)} "
        f"shard(s); expertsteer.HiddenStates.open({str(out)!r}) reads them"
    )
