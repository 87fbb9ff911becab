"""Fused Laplace kernel: from a Gram matrix to K and W in one pass over symmetric tiles.

`reference.laplace` passes over several n x n temporaries; this reads each upper tile of P once,
with its two stretches of the diagonal, and writes K and W, each tile with its mirror image.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64


@triton.jit
def laplace_kernel(
    gram,  # [B, n, n] fp32
    bandwidth,  # [B] fp32
    kernel,  # [B, n, n] fp32, written
    weights,  # [B, n, n] fp32, written
    n,
    eps,
    BLOCK: tl.constexpr,
):
    row_tile, column_tile, problem = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if column_tile < row_tile:  # the mirror image writes it
        return
    # 64-bit: a batch of Gram matrices passes 2^31 entries long before it fills a GPU.
    base = problem.to(tl.int64) * n * n
    rows = (row_tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    columns = (column_tile * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    row_in, column_in = rows < n, columns < n
    inside = row_in[:, None] & column_in[None, :]
    here = base + rows[:, None] * n + columns[None, :]
    mirrored = base + columns[:, None] * n + rows[None, :]

    length = tl.load(bandwidth + problem)
    p = tl.load(gram + here, mask=inside, other=0.0)
    row_norm = tl.load(gram + base + rows * (n + 1), mask=row_in, other=0.0)
    column_norm = tl.load(gram + base + columns * (n + 1), mask=column_in, other=0.0)
    squared = row_norm[:, None] + column_norm[None, :] - 2.0 * p
    # Exactly zero on the diagonal, where rounding would leave the square root of eps.
    squared = tl.where(rows[:, None] == columns[None, :], 0.0, tl.maximum(squared, 0.0))
    distance = tl.sqrt(squared)
    k = tl.exp(-distance / length)
    apart = distance >= eps * length
    w = tl.where(apart, k / (length * tl.where(apart, distance, 1.0)), 0.0)

    tl.store(kernel + here, k, mask=inside)
    tl.store(weights + here, w, mask=inside)
    if column_tile > row_tile:
        flipped = column_in[:, None] & row_in[None, :]
        tl.store(kernel + mirrored, tl.trans(k), mask=flipped)
        tl.store(weights + mirrored, tl.trans(w), mask=flipped)


def laplace(gram: Tensor, bandwidth: Tensor, eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """`reference.laplace` for float32; symmetric to the last bit."""
    gram = gram.contiguous()
    batch, n, _ = gram.shape
    kernel, weights = torch.empty_like(gram), torch.empty_like(gram)
    tiles = triton.cdiv(n, BLOCK)
    laplace_kernel[(tiles, tiles, batch)](
        gram, bandwidth.contiguous(), kernel, weights, n, eps, BLOCK=BLOCK
    )
    return kernel, weights
