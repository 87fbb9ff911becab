"""Fused Laplace kernel: K and W in one pass, from a Gram matrix or straight from the points.

`reference.laplace` passes over several n x n temporaries. Here every upper tile is computed once
and written with its mirror image, so that the results are symmetric to the last bit; between two
sets of points, the Gram matrix itself never reaches memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_tiles import (
    Tile,
    choose_tile,
    dot_precision,
    grouped_tile,
    launch,
    store_mirrored,
    upper_decides,
    upper_tile,
    valid_points,
)

# Square, because a tile has to hold its own mirror image on the diagonal.
GRAM_TILES = (Tile(32, 32, 4, 1), Tile(64, 64, 8, 1))
POINT_TILES = (Tile(32, 32, 4, 2), Tile(64, 64, 8, 3))


@triton.jit
def laplace_entries(squared, length, eps):
    """K, W and D of a tile of squared distances."""
    # A comparison, not a maximum, which would turn NaN into the distance zero.
    distance = tl.sqrt(tl.where(squared < 0.0, 0.0, squared))
    k = tl.exp(-distance / length)
    apart = distance >= eps * length
    w = tl.where(apart, k / (length * tl.where(apart, distance, 1.0)), 0.0)
    return k, w, distance


@triton.jit
def laplace_kernel(
    gram,  # [B, n, n] fp32
    bandwidth,  # [B] fp32
    sizes,  # [B] int, or None
    kernel,  # [B, n, n] fp32, written
    weights,  # [B, n, n] fp32, written
    distances,  # [B, n, n] fp32, written, or None
    n,
    eps,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(n, BLOCK)
    tiles = tiles * (tiles + 1) // 2
    row_tile, column_tile = upper_tile(tl.program_id(0) % tiles)
    # 64 bits to the tile's corner: a batch of Gram matrices passes 2^31 entries long before it
    # fills a GPU. 32 bits within the tile: one register an offset instead of two.
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    row, column = row_tile.to(tl.int64) * BLOCK, column_tile.to(tl.int64) * BLOCK
    here = tl.arange(0, BLOCK)
    size = valid_points(sizes, problem, n)
    row_in, column_in = here < size - row, here < size - column
    inside = row_in[:, None] & column_in[None, :]

    gram += problem * n * n
    corner = gram + row * n + column
    p = tl.load(corner + (here[:, None] * n + here[None, :]), mask=inside, other=0.0)
    if row_tile == column_tile:  # P may be symmetric to rounding only
        p = upper_decides(p, BLOCK)
    row_norms = tl.load(gram + row * (n + 1) + here * (n + 1), mask=row_in, other=0.0)
    column_norms = tl.load(gram + column * (n + 1) + here * (n + 1), mask=column_in, other=0.0)
    squared = row_norms[:, None] + column_norms[None, :] - 2.0 * p
    # Exactly zero on the diagonal, where rounding would leave the square root of eps; in the
    # padding everything is zero, so that a distance, hence W, is zero there too.
    same = (row_tile == column_tile) & (here[:, None] == here[None, :])
    squared = tl.where(same | (inside == 0), 0.0, squared)
    k, w, distance = laplace_entries(squared, tl.load(bandwidth + problem), eps)
    k = tl.where(inside | same, k, 0.0)

    store_mirrored(kernel + problem * n * n, k, row_tile, column_tile, n, BLOCK)
    store_mirrored(weights + problem * n * n, w, row_tile, column_tile, n, BLOCK)
    if distances is not None:
        store_mirrored(distances + problem * n * n, distance, row_tile, column_tile, n, BLOCK)


@triton.jit
def laplace_points_kernel(
    left,  # [B, m, d] fp32
    right,  # [B, n, d] fp32
    left_norms,  # [B, m] fp32
    right_norms,  # [B, n] fp32
    bandwidth,  # [B] fp32
    kernel,  # [B, m, n] fp32, written
    weights,  # [B, m, n] fp32, written
    m,
    n,
    d,
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_tiles, column_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    tiles = row_tiles * column_tiles
    row_tile, column_tile = grouped_tile(tl.program_id(0) % tiles, row_tiles, column_tiles)
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    row, column = row_tile.to(tl.int64) * BLOCK_M, column_tile.to(tl.int64) * BLOCK_N
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    row_in, column_in = i < m - row, j < n - column
    inside = row_in[:, None] & column_in[None, :]

    left += (problem * m + row) * d
    right += (problem * n + column) * d
    k = tl.arange(0, BLOCK_K)
    inner = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, d, BLOCK_K):
        k_in = k < d - start
        a = tl.load(
            left + start + (i[:, None] * d + k[None, :]),
            mask=row_in[:, None] & k_in[None, :],
            other=0.0,
        )
        b = tl.load(
            right + start + (k[:, None] + j[None, :] * d),
            mask=k_in[:, None] & column_in[None, :],
            other=0.0,
        )
        inner = tl.dot(a, b, inner, input_precision=PRECISION)
    row_norms = tl.load(left_norms + problem * m + row + i, mask=row_in, other=0.0)
    column_norms = tl.load(right_norms + problem * n + column + j, mask=column_in, other=0.0)
    squared = row_norms[:, None] + column_norms[None, :] - 2.0 * inner
    length = tl.load(bandwidth + problem)
    kernel_tile, w, _ = laplace_entries(squared, length, eps)
    corner, offsets = problem * m * n + row * n + column, i[:, None] * n + j[None, :]
    tl.store(kernel + corner + offsets, kernel_tile, mask=inside)
    tl.store(weights + corner + offsets, w, mask=inside)


def laplace(
    gram: Tensor,
    bandwidth: Tensor,
    sizes: Tensor | None = None,
    eps: float = 1e-10,
    distances: bool = False,
    config: Tile | None = None,
) -> tuple[Tensor, ...]:
    """`reference.laplace` in float32; both triangles are written, symmetric to the last bit, the
    diagonals of D and W zero and that of K one, exactly.

    Args:
        gram: where it is symmetric to rounding only, its upper triangle decides.
        sizes: what the padding holds does not matter; D is zero there.
        distances: also return D.
        config: one of `GRAM_TILES`; chosen from the shape unless given.

    Returns:
        ``K, W`` or ``K, W, D``, each ``[B, n, n]``.
    """
    gram, sizes = gram.contiguous(), None if sizes is None else sizes.contiguous()
    batch, n, _ = gram.shape
    out = [torch.empty_like(gram) for _ in range(3 if distances else 2)]
    tile = config or choose_tile(GRAM_TILES, n, n, batch)
    launch(
        laplace_kernel,
        batch * tile.count_upper(n),
        gram,
        gram,
        bandwidth.contiguous(),
        sizes,
        out[0],
        out[1],
        out[2] if distances else None,
        n,
        eps,
        BLOCK=tile.rows,
        **tile.options,
    )
    return tuple(out)


def laplace_points(
    left: Tensor,
    right: Tensor,
    left_norms: Tensor,
    right_norms: Tensor,
    bandwidth: Tensor,
    eps: float = 1e-10,
    config: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.laplace_points` in float32; the Gram matrix is never written.

    Rounding leaves equal points about ``sqrt(1e-7)`` of their norm apart: centre the points first.

    Args:
        config: one of `POINT_TILES`; chosen from the shape unless given.
    """
    left, right = left.contiguous(), right.contiguous()
    (batch, m, d), n = left.shape, right.shape[1]
    kernel, weights = left.new_empty(batch, m, n), left.new_empty(batch, m, n)
    tile = config or choose_tile(POINT_TILES, m, n, batch)
    launch(
        laplace_points_kernel,
        batch * tile.count(m, n),
        left,
        left,
        right,
        left_norms.contiguous(),
        right_norms.contiguous(),
        bandwidth.contiguous(),
        kernel,
        weights,
        m,
        n,
        d,
        eps,
        PRECISION=dot_precision(left.device),
        **tile.blocks,
        **tile.options,
    )
    return kernel, weights
