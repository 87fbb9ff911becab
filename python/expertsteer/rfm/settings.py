"""The numbers that a fit depends on, one set per problem of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """One point of a grid: what may differ between the problems of a batch."""

    bandwidth: float
    reg: float
    center_grads: bool


@dataclass(frozen=True)
class Options:
    """What all problems of a fit have in common."""

    bandwidth_mode: str
    iters: int
    normalize: str
    tuning_metric: str
    tick: Callable[[int], None]  # called with the number of fits that were just done


def columns(settings: tuple[Setting, ...], problems: int, like: Tensor):
    """Bandwidth, reg and centring as ``[problems * settings]``, the settings running fastest."""

    def column(name: str, dtype: torch.dtype) -> Tensor:
        values = [getattr(s, name) for s in settings] * problems
        return torch.tensor(values, dtype=dtype, device=like.device)

    centre = column("center_grads", torch.bool)
    return (
        column("bandwidth", like.dtype),
        column("reg", like.dtype),
        centre if bool(centre.any()) else None,
    )
