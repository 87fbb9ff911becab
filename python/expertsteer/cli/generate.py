"""``expertsteer generate``."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated, Any

import typer

from ..support.text import SafeConsole
from .options import (
    CheckModel,
    Device,
    Dtype,
    Json,
    LayersPath,
    OnlyLayers,
    Revision,
    Seed,
    TrustRemoteCode,
    integer,
    print_json,
    torch_dtype,
)


class Positions(str, Enum):
    all = "all"
    prompt = "prompt"
    generated = "generated"
    last = "last"


def generate(
    model: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    vectors: Annotated[str, typer.Option(help="Folder or Hub id of steering vectors.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")] = "-",
    strength: Annotated[
        str, typer.Option(help="In median norms of the states, or auto: as calibrated.")
    ] = "0.5",
    positions: Annotated[Positions, typer.Option(help="Which tokens.")] = Positions.all,
    layers: OnlyLayers = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.")] = 0.0,
    seed: Seed = 0,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    decoder_layers: LayersPath = None,
    check_model: CheckModel = True,
    unsteered: Annotated[bool, typer.Option(help="Also without steering, to compare.")] = True,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with and without steering."""
    from ..models.loading import load
    from ..vectors.vectors import SteeringVectors

    loaded = SteeringVectors.from_pretrained(vectors)
    if layers is not None:
        loaded = loaded.select([integer("layers", part) for part in layers.split(",")])
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, came {max_new_tokens}")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise ValueError(f"temperature must be 0 or lie in 0.001..1000, came {temperature}")
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    dtype, amount = torch_dtype(dtype), _strength(strength, loaded)
    network, tokenizer = load(
        model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    sampling: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        sampling["temperature"] = temperature
    options = {
        "positions": positions.value,
        "decoder_layers": decoder_layers,
        "check_model": check_model,
    }
    texts = _continue(network, tokenizer, text, loaded, amount, options, sampling, seed)
    if not unsteered:
        texts.pop("unsteered")
    if as_json:
        print_json({"prompt": text, "strength": amount, "positions": positions.value} | texts)
        return
    console = SafeConsole(soft_wrap=True)
    for name, continuation in texts.items():
        console.print(name, style="bold")
        console.print(text + continuation)


def _continue(network, tokenizer, text, vectors, strength, options, sampling, seed):
    import torch

    from ..models.encoding import encode
    from ..models.forward import input_device
    from ..steering.steering import attach

    ids = torch.tensor(encode(tokenizer, [text]), dtype=torch.int64, device=input_device(network))
    if ids.shape[1] == 0:
        raise ValueError("prompt must hold at least one token, came an empty text")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts = {}
    with attach(network, vectors, **options) as steering:
        for name, value in (("unsteered", 0.0), ("steered", strength)):
            steering.set(strength=value)
            torch.manual_seed(seed)
            tokens = network.generate(**inputs, **sampling)
            new = tokens[0, ids.shape[1] :]
            texts[name] = tokenizer.decode(new, skip_special_tokens=True)
    return texts


def _strength(text: str, vectors) -> float:
    from ..steering.checks import resolved_strength

    try:
        value: Any = float(text)
    except ValueError:
        value = text
    return resolved_strength(value, {0: vectors}, "add")
