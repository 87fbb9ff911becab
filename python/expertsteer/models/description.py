"""What a model tells of itself: names, depth, width, type, vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .decoder import (
    DecoderNotFoundError,
    config_depth,
    find_decoder,
    first_integer,
    text_config,
    unwrapped,
    way_to_width,
)
from .forward import token_embedding


def describe(model: nn.Module, decoder_layers: str | None = None) -> dict[str, Any]:
    """Where states and vectors come from: plain values that fit into a json file.

    Returns:
        ``name`` (the path or id it was loaded from), ``revision`` (the Hub commit, if any),
        ``architecture`` (class name), ``num_layers``, ``hidden_size`` and ``dtype``; ``None``
        for what the model does not tell.
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    try:
        depth = len(find_decoder(model, decoder_layers))
    except DecoderNotFoundError:
        if decoder_layers is not None:
            raise
        depth = config_depth(model)
    return {
        "name": getattr(config, "_name_or_path", None) or None,
        "revision": getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "num_layers": depth,
        "hidden_size": _told_width(model),
        "dtype": str(model_dtype(model)).removeprefix("torch."),
    }


def hidden_size(model: nn.Module) -> int:
    """The width of the residual stream.

    Raises:
        ValueError: neither the configuration nor the token embedding tells it.
    """
    model = unwrapped(model)
    width = _told_width(model)
    if width is None:
        raise ValueError(
            f"model: {type(model).__name__} does not tell its width; {way_to_width(model)}"
        )
    return width


def _told_width(model: nn.Module) -> int | None:
    width = first_integer(text_config(model), ("hidden_size", "n_embd", "d_model", "dim"))
    weight = getattr(token_embedding(model), "weight", None)
    return weight.shape[-1] if width is None and isinstance(weight, Tensor) else width


def model_dtype(model: nn.Module) -> torch.dtype:
    """The type of the first floating-point parameter wider than a byte (quantised ones are not)."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize > 1)
    return next(floating, torch.float32)


def floating(dtype: torch.dtype | str | None, default: Any) -> Any:
    """``dtype`` as a floating-point `torch.dtype`, or ``default`` where nothing was asked for."""
    if dtype in (None, "model", "auto"):
        return default
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(
            "dtype must be None (the model's own) or a floating-point type such as torch.float32, "
            f"came {dtype!r}"
        )
    return chosen


def embedded(model: nn.Module) -> int | None:
    weight = getattr(token_embedding(model), "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None
