"""Fused neighbour counts: the k-th joint distance and both marginal counts, for all layer pairs.

`reference.ksg_counts` holds the joint distances of one layer with all others; here a program
takes one row of one layer of x beside the same row of a few layers of y and keeps nothing but
lane-wise minima and counts. Only maxima, minima and comparisons are taken, so the counts are the
reference's, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tiles of LAYERS x POINTS; checked to compile without spills in tests/ops/test_triton_ksg.py.
LAYERS, POINTS = 8, 128
WARPS = 4


@triton.jit
def _tile(x, y, x_row, y_rows, y_in, start, n, LAYERS: tl.constexpr, POINTS: tl.constexpr):
    """Distances of POINTS points in x, ``[1, POINTS]``, and in LAYERS layers of y."""
    points = start + tl.arange(0, POINTS)
    inside = points < n
    u = tl.load(x + x_row + points, mask=inside, other=float("inf"))
    v = tl.load(
        y + y_rows[:, None] + points[None, :],
        mask=y_in[:, None] & inside[None, :],
        other=float("inf"),
    )
    return tl.broadcast_to(u[None, :], (LAYERS, POINTS)), v


@triton.jit
def ksg_counts_kernel(
    x,  # [L_x, rows, n] fp32, infinite from a point to itself
    y,  # [L_y, rows, n] fp32
    n_x,  # [L_x, L_y, rows] int32, written
    n_y,  # [L_x, L_y, rows] int32, written
    layers_y,
    rows,
    n,
    K: tl.constexpr,
    VARIANT: tl.constexpr,
    LAYERS: tl.constexpr,
    POINTS: tl.constexpr,
):
    row, layer_x = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    layer_y = (tl.program_id(2) * LAYERS + tl.arange(0, LAYERS)).to(tl.int64)
    y_in = layer_y < layers_y
    # 64-bit: the distances of a few dozen layers pass 2^31 entries at ten thousand points.
    x_row, y_rows = (layer_x * rows + row) * n, (layer_y * rows + row) * n

    # The k-th smallest: the next larger value k times over, unless the one at hand already has k
    # points within it (ties). One sweep finds the next value and counts for the last.
    radius = tl.full((LAYERS, 1), float("-inf"), tl.float32)
    for _ in range(K):
        within = tl.zeros((LAYERS, POINTS), tl.int32)
        larger = tl.full((LAYERS, POINTS), float("inf"), tl.float32)
        for start in range(0, n, POINTS):
            u, v = _tile(x, y, x_row, y_rows, y_in, start, n, LAYERS, POINTS)
            joint = tl.maximum(u, v)
            within += (joint <= radius).to(tl.int32)
            larger = tl.where(joint > radius, tl.minimum(larger, joint), larger)
        found = tl.sum(within, axis=1)[:, None] >= K
        radius = tl.where(found, radius, tl.min(larger, axis=1)[:, None])

    side_x, side_y = radius, radius
    if VARIANT == 2:  # the rectangle that holds the neighbours
        far_x = tl.zeros((LAYERS, POINTS), tl.float32)
        far_y = tl.zeros((LAYERS, POINTS), tl.float32)
        for start in range(0, n, POINTS):
            u, v = _tile(x, y, x_row, y_rows, y_in, start, n, LAYERS, POINTS)
            neighbour = tl.maximum(u, v) <= radius
            far_x = tl.where(neighbour, tl.maximum(far_x, u), far_x)
            far_y = tl.where(neighbour, tl.maximum(far_y, v), far_y)
        side_x = tl.max(far_x, axis=1)[:, None]
        side_y = tl.max(far_y, axis=1)[:, None]

    count_x = tl.zeros((LAYERS, POINTS), tl.int32)
    count_y = tl.zeros((LAYERS, POINTS), tl.int32)
    for start in range(0, n, POINTS):
        u, v = _tile(x, y, x_row, y_rows, y_in, start, n, LAYERS, POINTS)
        if VARIANT == 1:
            count_x += (u < side_x).to(tl.int32)
            count_y += (v < side_y).to(tl.int32)
        else:
            count_x += (u <= side_x).to(tl.int32)
            count_y += (v <= side_y).to(tl.int32)
    out = (layer_x * layers_y + layer_y) * rows + row
    tl.store(n_x + out, tl.sum(count_x, axis=1), mask=y_in)
    tl.store(n_y + out, tl.sum(count_y, axis=1), mask=y_in)


def ksg_counts(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[Tensor, Tensor]:
    """`reference.ksg_counts` for float32, equal count by count."""
    x, y = x.contiguous(), y.contiguous()
    (layers_x, rows, n), layers_y = x.shape, y.shape[0]
    n_x, n_y = (
        torch.empty(layers_x, layers_y, rows, dtype=torch.int32, device=x.device) for _ in range(2)
    )
    grid = (rows, layers_x, triton.cdiv(layers_y, LAYERS))
    ksg_counts_kernel[grid](
        x,
        y,
        n_x,
        n_y,
        layers_y,
        rows,
        n,
        K=k,
        VARIANT=variant,
        LAYERS=LAYERS,
        POINTS=POINTS,
        num_warps=WARPS,
    )
    return n_x, n_y
