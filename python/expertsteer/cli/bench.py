"""``expertsteer bench``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..support.console import SafeConsole
from ..support.numbers import count, interval
from . import options


def bench(
    model: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    vectors: Annotated[
        str | None, typer.Option(help="Folder or Hub id; by default random, at every layer.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens to decode.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each way is timed.")] = 9,
    threads: Annotated[
        int | None, typer.Option(help="Of torch, on a CPU; small models want one.")
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    decoder_layers: options.LayersPath = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Time steered decoding on this machine, beside unsteered decoding and a plain hook."""
    import torch

    from ..evaluation.cost import bench as run
    from ..models.loading import load
    from ..vectors.vectors import SteeringVectors

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, came {threads}")
        torch.set_num_threads(threads)
    dtype = options.torch_dtype(dtype)
    loaded = None if vectors is None else SteeringVectors.from_pretrained(vectors)
    network, _ = load(
        model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    counts = {"batch": batch, "prompt": prompt, "tokens": tokens, "rounds": rounds, "seed": seed}
    costs = run(network, loaded, **counts, decoder_layers=decoder_layers)
    if as_json:
        where = {"model": model, "device": str(network.device), "dtype": str(network.dtype)}
        options.print_json(where | counts | {"ways": [cost.to_dict() for cost in costs]})
        return
    table = Table(title=f"{model} on {network.device}, batch {batch}, {tokens} tokens each")
    for name in ("steered by", "tokens/s", "time x unsteered"):
        table.add_column(name, justify="left" if name == "steered by" else "right")
    for cost in costs:
        if cost.ratio is None:
            table.add_row(cost.way, "-", "not timed")
            continue
        table.add_row(cost.way, count(round(cost.tokens_per_second)), interval(cost.ratio))
    console = SafeConsole()
    console.print(table)
    for cost in costs:
        if cost.reason is not None:
            console.print(f"{cost.way}: {cost.reason}")
