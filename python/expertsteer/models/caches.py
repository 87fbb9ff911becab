"""Which argument of a decoder is its cache, and how many tokens that holds.

Releases of transformers call the argument ``past_key_values``, ``cache_params``, ``state`` or
``cache``, so it is told by what it is: an object that knows its length, the nested tuples of old
releases, or states that recurrent layers carry on and that count nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

_PLAIN = (Tensor, bool, int, float, str, torch.dtype, torch.device)
# What carries recurrent states where neither the type nor its methods say so.
_NAMES = ("cache", "past_key_values", "cache_params", "state")
_RECURRENT_NAMES = ("cache_params", "state")
# How a cache says of a layer that it cannot tell its length; releases differ.
_CANNOT_TELL = (ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


def find_cache(inputs: Mapping[str, Any]) -> Any:
    """The cache among a decoder's arguments, ``None`` where none is given."""
    for name, value in inputs.items():
        if value is None or isinstance(value, _PLAIN):
            continue
        if isinstance(value, Proxy) and name not in _NAMES:  # a tracer's has every attribute
            continue
        if is_cache(value) or (name in _RECURRENT_NAMES and _tensors(value)):
            return value
    return None


def is_cache(value: Any) -> bool:
    """Whether it is a cache, by its methods or its shape."""
    if hasattr(value, "get_seq_length") or _is_nested_tuples(value):
        return True
    return "Cache" in type(value).__name__


def unreadable(inputs: Mapping[str, Any]) -> list[str]:
    """Names of arguments that are none of a decoder's usual kinds: perhaps a cache."""
    usual = (*_PLAIN, Mapping, list, tuple)
    return [
        name
        for name, value in inputs.items()
        if value is not None and not isinstance(value, usual) and not is_cache(value)
    ]


def cached_tokens(cache: Any) -> int | Tensor | None:
    """How many tokens a cache holds, as a tensor where it keeps that on a device.

    ``None`` where it cannot tell: it holds states, and none of its layers counts them.
    """
    if cache is None:
        return 0
    length = counted_tokens(cache)
    if isinstance(length, Tensor):
        return int(length) if length.device.type == "cpu" else length
    if length:
        return length
    return 0 if holds_nothing(cache) else None


def counted_tokens(cache: Any) -> int | Tensor | None:
    """What the layers of a cache have counted; 0 or ``None`` where none of them counts.

    Compilers can follow it.
    """
    if _is_nested_tuples(cache):
        return cache[0][0].shape[-2]
    length = _length(cache)
    if not (length is None or (type(length) is int and length == 0)):
        return length
    # Layer 0 may be one that counts nothing: ask the others.
    for layer in range(1, _depth(cache)):
        counted = _length(cache, layer)
        if isinstance(counted, int) and counted > 0:
            return counted
    return length


def told_by_generate(inputs: Mapping[str, Any], tokens: int) -> int | None:
    """The place that releases before 5.0 hand on, which their caches do not always know."""
    places = inputs.get("cache_position")
    if isinstance(places, Tensor) and places.device.type == "cpu" and places.shape == (tokens,):
        return int(places[0])
    return None


def holds_nothing(cache: Any) -> bool:
    """Whether no token has gone into it: no tensors yet, or nothing but zeros in them."""
    return not any(bool(tensor.any()) for tensor in _tensors(cache))


def first_tensor(cache: Any) -> Tensor | None:
    """One that tells lists of states apart, which cannot be told by a weak reference."""
    return next(iter(_tensors(cache)), None)


def _length(cache: Any, *layer: int) -> int | Tensor | None:
    if not hasattr(cache, "get_seq_length"):
        return None
    try:
        return cache.get_seq_length(*layer)
    except _CANNOT_TELL:
        return None


def _depth(cache: Any) -> int:
    """How many layers it has."""
    try:
        return len(cache)
    except TypeError:
        return 0


def _is_nested_tuples(value: Any) -> bool:
    """``((keys, values, ...), ...)``, keys ``[batch, heads, tokens, width]``."""
    if not isinstance(value, (tuple, list)) or not value or not isinstance(value[0], (tuple, list)):
        return False
    first = value[0]
    return len(first) > 1 and isinstance(first[0], Tensor) and first[0].ndim == 4


def _tensors(value: Any, depth: int = 4) -> list[Tensor]:
    """Those it holds, its own and those of its parts."""
    if isinstance(value, Tensor):
        return [value] if value.numel() else []
    if depth == 0 or value is None or isinstance(value, (bool, int, float, str, type)):
        return []
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    return [tensor for part in parts for tensor in _tensors(part, depth - 1)]
