"""Why the states of a steered model are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..support.numbers import setting, short
from ..support.tracing import unwrapped
from .state import State
from .watched import largest


def diagnose(steering: State, hidden: Tensor, inputs: Mapping[str, Any]) -> None:
    """Run the pass again without its cache, steered and not, and look at every layer.

    Raises:
        RuntimeError: steering made the states not finite; with the layer. A model whose unsteered
            states are not finite either, or only those at padding, raises nothing.
    """
    if not _real(~torch.isfinite(hidden).all(dim=-1), inputs):
        return
    prompt = steering.current.prompt
    steering.watch = False
    with prompt.unrecorded(), steering.muted():
        unsteered = _first_bad_layer(steering, inputs)
    if unsteered is not None:
        return  # the model's own; it stays unwatched, as every pass would be run again
    try:
        with prompt.unrecorded():
            broken = _first_bad_layer(steering, inputs)
    finally:
        steering.watch = True
    _raise(steering, broken, hidden.dtype)


def require_length(steering: State, hidden: Tensor, inputs: Mapping[str, Any]) -> None:
    """No state was so long that the last norm made zeros of it.

    Raises:
        RuntimeError: with the strength.
    """
    if _real((hidden == 0).all(dim=-1), inputs):
        raise RuntimeError(
            f"strength {setting(steering.bank.strength)} of operation {steering.operation!r} makes "
            "states so long that the squares in the model's norms are not finite, and its output "
            "zero; lower the strength"
        )


def _raise(steering: State, broken: int | None, dtype: torch.dtype) -> None:
    bank = steering.bank
    before = [i for i in bank.layers if broken is None or i <= broken] or bank.layers
    layer, size = largest(bank, before)
    where = "" if broken is None else f" from layer {broken} on"
    raise RuntimeError(
        f"strength {setting(bank.strength)} makes the states not finite{where}: the largest vector "
        f"up to there, at layer {layer}, adds a norm of {short(float(size), 3)} in {dtype}, which "
        f"holds up to {short(float(torch.finfo(dtype).max), 3)}; lower the strength, or load the "
        "model in a wider type"
    )


def _real(bad: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether a token that is not padding is among them; ``bad`` is ``[batch, tokens]``."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        bad = bad & mask[:, -bad.shape[1] :].bool().to(bad.device)
    return bool(unwrapped(bad).any())


def _first_bad_layer(steering: State, inputs: Mapping[str, Any]) -> int | None:
    again = _without_cache(inputs)
    found: list[int] = []

    def look(index: int):
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if _real(~torch.isfinite(hidden).all(dim=-1), again):
                found.append(index)

        return hook

    layers, decoder = steering.decoder.layers, steering.decoder.decoder
    hooks = [layer.register_forward_hook(look(i)) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            decoder(**again, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return min(found, default=None)


def _without_cache(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same tokens as a pass of their own."""
    names = ("input_ids", "inputs_embeds")
    again = {n: inputs[n] for n in names if inputs.get(n) is not None}
    tokens, mask = next(iter(again.values())), inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        again["attention_mask"] = mask[:, -tokens.shape[1] :]
    return again
