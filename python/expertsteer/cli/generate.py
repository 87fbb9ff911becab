"""``expertsteer generate``."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any, Literal

import typer

from ..support.console import SafeConsole
from . import options

Positions = Literal["all", "prompt", "generated", "last"]


def generate(
    model: Annotated[str, typer.Option(help="Path or Hub id of the model to steer.")],
    vectors: Annotated[str, typer.Option(help="Folder or Hub id of steering vectors.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")] = "-",
    strength: Annotated[
        str | None,
        typer.Option(help="A number, or auto: as calibrated, which is the default."),
    ] = None,
    positions: Annotated[Positions, typer.Option(help="Which tokens.")] = "all",
    layers: options.OnlyLayers = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.")] = 0.0,
    seed: options.Seed = 0,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    decoder_layers: options.LayersPath = None,
    check_model: options.CheckModel = True,
    unsteered: Annotated[bool, typer.Option(help="Also without steering, to compare.")] = True,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt with and without steering."""
    from ..models.loading import load
    from ..vectors.vectors import SteeringVectors

    loaded = SteeringVectors.from_pretrained(vectors)
    if layers is not None:
        loaded = loaded.select(options.layers_of(layers))
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, came {max_new_tokens}")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise ValueError(f"temperature must be 0 or lie in 0.001..1000, came {temperature}")
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    dtype, amount = options.torch_dtype(dtype), _strength(strength, loaded)
    network, tokenizer = load(
        model, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    sampling: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        sampling["temperature"] = temperature
    attaching = {
        "positions": positions,
        "decoder_layers": decoder_layers,
        "check_model": check_model,
    }
    texts = _continue(network, tokenizer, text, loaded, amount, attaching, sampling, seed)
    if not unsteered:
        texts.pop("unsteered")
    if as_json:
        options.print_json({"prompt": text, "strength": amount, "positions": positions} | texts)
        return
    console = SafeConsole(soft_wrap=True)
    for name, continuation in texts.items():
        console.print(name, style="bold")
        console.print(text + continuation)


def _continue(network, tokenizer, text, vectors, strength, attaching, sampling, seed):
    import torch

    from ..models.encoding import encode
    from ..models.forward import input_device
    from ..steering.steering import attach

    ids = torch.tensor(encode(tokenizer, [text]), dtype=torch.int64, device=input_device(network))
    if ids.shape[1] == 0:
        raise ValueError("prompt must hold at least one token, came an empty text")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    texts = {}
    with attach(network, vectors, **attaching) as steering:
        for name, value in (("unsteered", 0.0), ("steered", strength)):
            steering.set(strength=value)
            torch.manual_seed(seed)
            tokens = network.generate(**inputs, **sampling)
            new = tokens[0, ids.shape[1] :]
            texts[name] = tokenizer.decode(new, skip_special_tokens=True)
    return texts


def _strength(text: str | None, vectors) -> float:
    from ..steering.strengths import resolved_strength

    value: Any = text
    if text is not None:
        with contextlib.suppress(ValueError):
            value = float(text)
    return resolved_strength(value, {0: vectors}, "add")
