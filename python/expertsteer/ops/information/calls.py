"""Mutual information of every pair of layers, checked: the chosen backend serves it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..choice import backends_of, choose
from . import reference


def gaussian_information(x: Tensor, y: Tensor, *, backend: str = "auto") -> Tensor:
    """Checked `reference.gaussian_information`."""
    if x.ndim != 3 or y.ndim != 3 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be [layers, n, r] with one n, came {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if x.shape[1] <= x.shape[2] + y.shape[2]:
        raise ValueError(
            f"{x.shape[1]} rows are too few for {x.shape[2]} + {y.shape[2]} components; give "
            "more rows or ask for fewer components"
        )
    return choose("gaussian_information", backend, x.device, x.dtype)(x, y)


KSG_TILE_BYTES = 256 * 2**20  # distances of all layers held at once


def ksg_information(
    x: Tensor, y: Tensor, k: int = 3, variant: int = 1, *, backend: str = "auto"
) -> Tensor:
    """Nearest-neighbour information of every pair of layers (Kraskov et al. 2004), in nats.

    Args:
        x: ``[L_x, n, r_x]`` and y: ``[L_y, n, r_y]`` float32, paired rows, as
            `reference.on_a_grid` gives them where counts must equal those of double precision.
        k: neighbours; variant: 1 or 2.

    Returns:
        ``[L_x, L_y]`` float64. Memory: 256 MiB of distances, tile by tile of the rows, beside
        ``8 L_x L_y`` bytes per row of the tile for the counts.
    """
    counts = choose("ksg_counts", backend, x.device, x.dtype)
    # Distances are the same bits from either, so a backend without its own takes the reference's.
    own = backend if backend in backends_of("max_norm_distances") else "auto"
    distances_of = choose("max_norm_distances", own, x.device, x.dtype)
    n = x.shape[1]
    per_row = 4 * (x.shape[0] + y.shape[0]) * n + 8 * x.shape[0] * y.shape[0]
    rows = max(1, min(n, KSG_TILE_BYTES // per_row))
    sums = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, n, rows):
        tile = range(start, min(n, start + rows))
        distances = (distances_of(codes, tile) for codes in (x, y))
        n_x, n_y = _checked_counts(counts, *distances, k, variant)
        sums += reference.digamma_sums(n_x, n_y, n, variant)
    return reference.ksg_information(sums, n, k, variant)


def ksg_counts(
    x: Tensor, y: Tensor, k: int, variant: int = 1, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Checked `reference.ksg_counts`."""
    counts = choose("ksg_counts", backend, x.device, x.dtype)
    return _checked_counts(counts, x, y, k, variant)


def _checked_counts(
    counts: Callable, x: Tensor, y: Tensor, k: int, variant: int
) -> tuple[Tensor, Tensor]:
    if x.ndim != 3 or y.ndim != 3 or x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
        raise ValueError(
            "x and y must be distances [layers, rows, n] of one dtype over the same points, came "
            f"{tuple(x.shape)} of {x.dtype} and {tuple(y.shape)} of {y.dtype}"
        )
    if variant not in (1, 2):
        raise ValueError(f"variant must be 1 or 2, came {variant!r}")
    if not isinstance(k, int) or not 1 <= k < x.shape[2]:
        raise ValueError(
            f"k must be an integer between 1 and the number of other points, {x.shape[2] - 1}; "
            f"came {k}"
        )
    return counts(x, y, k, variant)
