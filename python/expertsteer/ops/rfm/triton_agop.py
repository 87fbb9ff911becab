"""Fused AGOP: the gradient rows ``T P`` with T built on the fly, and their symmetric product.

``T_c = diag(W alpha_c) - W diag(alpha_c)`` never reaches memory: the tiles of W are scaled as they
are loaded, and their row sums, which make up the diagonal, are taken on the way. W = K / (L D)
carries the distances and the kernel in one array: one load instead of two. The sum of outer
products is computed on upper tiles only, each written with its mirror image.
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
from .carry import Carry

ROW_TILES = (Tile(32, 32, 4, 2), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2))
# Square, because a tile has to hold its own mirror image on the diagonal.
PRODUCT_TILES = (Tile(32, 32, 4, 2), Tile(64, 64, 8, 2), Tile(128, 128, 8, 2))


@triton.jit
def gradient_rows_kernel(
    weights,  # [B, n, n] fp32
    alpha,  # [B, n, C] fp32
    right,  # [B, n, m] fp32
    sizes,  # [B] int, or None
    rows_out,  # [B, C, n, m] fp32, written
    row_sums,  # [B, n, C] fp32, written: W alpha
    n,
    m,
    outputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The outputs of one tile run next to each other: they read the same W and P.
    output, tile = tl.program_id(0) % outputs, tl.program_id(0) // outputs
    row_tiles, column_tiles = tl.cdiv(n, BLOCK_M), tl.cdiv(m, BLOCK_N)
    tiles = row_tiles * column_tiles
    row_tile, column_tile = grouped_tile(tile % tiles, row_tiles, column_tiles)
    # 64 bits to the tile's corner: a batch of Gram matrices passes 2^31 entries long before it
    # fills a GPU. 32 bits within the tile: one register an offset instead of two.
    problem = (tile // tiles).to(tl.int64)
    row, column = row_tile.to(tl.int64) * BLOCK_M, column_tile.to(tl.int64) * BLOCK_N
    i, j, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    size = valid_points(sizes, problem, n)
    row_in, column_in = i < size - row, j < m - column

    weights += (problem * n + row) * n
    right += problem * n * m + column
    alpha += problem * n * outputs + output
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, size, BLOCK_K):
        first = tl.cast(start, tl.int64)
        k_in = k < size - start
        w = tl.load(
            weights + first + (i[:, None] * n + k[None, :]),
            mask=row_in[:, None] & k_in[None, :],
            other=0.0,
        )
        w *= tl.load(alpha + first * outputs + k * outputs, mask=k_in, other=0.0)[None, :]
        r = tl.load(
            right + first * m + (k[:, None] * m + j[None, :]),
            mask=k_in[:, None] & column_in[None, :],
            other=0.0,
        )
        sums += tl.sum(w, axis=1)
        total = tl.dot(w, r, total, input_precision=PRECISION)

    offsets = i[:, None] * m + j[None, :]
    own = tl.load(right + row * m + offsets, mask=row_in[:, None] & column_in[None, :], other=0.0)
    # Padded rows are written as zeros, even where the columns of ``right`` are not numbers.
    value = tl.where(row_in[:, None], sums[:, None] * own - total, 0.0)
    written = i < n - row
    rows_out += ((problem * outputs + output) * n + row) * m + column
    inside = written[:, None] & column_in[None, :]
    tl.store(rows_out + offsets, value, mask=inside)
    if column_tile == 0:
        row_sums += (problem * n + row) * outputs + output
        tl.store(row_sums + i * outputs, sums, mask=written)


@triton.jit
def symmetric_product_kernel(
    rows,  # [B, R, n] fp32
    sizes,  # [B] int, or None
    out,  # [B, n, n] fp32, written
    rows_count,
    n,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(n, BLOCK)
    tiles = tiles * (tiles + 1) // 2
    row_tile, column_tile = upper_tile(tl.program_id(0) % tiles)
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    row, column = row_tile.to(tl.int64) * BLOCK, column_tile.to(tl.int64) * BLOCK
    here, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    size = valid_points(sizes, problem, n)
    row_in, column_in = here < size - row, here < size - column

    rows += problem * rows_count * n
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    # A tile whose columns are all padding adds up nothing.
    count = tl.where(column < size, rows_count, 0)
    for start in range(0, count, BLOCK_K):
        first = rows + tl.cast(start, tl.int64) * n
        k_in = k < rows_count - start
        left = tl.load(
            first + row + (here[:, None] + k[None, :] * n),
            mask=row_in[:, None] & k_in[None, :],
            other=0.0,
        )
        right = tl.load(
            first + column + (k[:, None] * n + here[None, :]),
            mask=k_in[:, None] & column_in[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    if row_tile == column_tile:  # a dot need not round (i, j) and (j, i) alike
        total = upper_decides(total, BLOCK)
    store_mirrored(out + problem * n * n, total, row_tile, column_tile, n, BLOCK)


def rows_and_sums(
    weights: Tensor,
    alpha: Tensor,
    right: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
    config: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.gradient_rows` in float32, and the row sums ``W alpha [B, n, C]``, by one kernel.

    What the padding holds does not matter.

    Args:
        config: one of `ROW_TILES`; chosen from the shape unless given.
    """
    weights, alpha, right = weights.contiguous(), alpha.contiguous(), right.contiguous()
    sizes = None if sizes is None else sizes.contiguous()
    (batch, n, outputs), m = alpha.shape, right.shape[2]
    rows, row_sums = right.new_empty(batch, outputs, n, m), torch.empty_like(alpha)
    tile = config or choose_tile(ROW_TILES, n, m, batch * outputs)
    launch(
        gradient_rows_kernel,
        batch * outputs * tile.count(n, m),
        right,
        weights,
        alpha,
        right,
        sizes,
        rows,
        row_sums,
        n,
        m,
        outputs,
        PRECISION=dot_precision(right.device),
        **tile.blocks,
        **tile.options,
    )
    if centre is not None and bool(centre.any()):
        _centre(rows, centre, sizes)
    return rows, row_sums


def _centre(rows: Tensor, centre: Tensor, sizes: Tensor | None) -> None:
    """Subtract, in place, the mean over outputs and valid points; padded rows stay zero."""
    _, outputs, n, _ = rows.shape
    points = n if sizes is None else sizes.clamp(min=1)
    share = (centre / (outputs * points)).view(-1, 1, 1, 1)
    rows -= rows.sum(dim=(1, 2), keepdim=True) * share  # padded rows add zero
    if sizes is None:
        return
    padding = torch.arange(n, device=rows.device).view(1, 1, -1, 1) >= sizes.view(-1, 1, 1, 1)
    rows.masked_fill_(padding, 0.0)


def symmetric_product(
    rows: Tensor, sizes: Tensor | None = None, config: Tile | None = None
) -> Tensor:
    """Sum of the outer products of the rows, ``rows^T rows``, symmetric to the last bit.

    Args:
        rows: ``[B, R, n]`` float32.
        sizes: ``[B]`` integers; columns from ``sizes[b]`` on are padding, whatever they hold, and
            zero in the product.
        config: one of `PRODUCT_TILES`; chosen from the shape unless given.

    Returns:
        ``[B, n, n]`` float32.
    """
    rows = rows.contiguous()
    batch, count, n = rows.shape
    out = rows.new_empty(batch, n, n)
    tile = config or choose_tile(PRODUCT_TILES, n, n, batch)
    launch(
        symmetric_product_kernel,
        batch * tile.count_upper(n),
        rows,
        rows,
        None if sizes is None else sizes.contiguous(),
        out,
        count,
        n,
        BLOCK=tile.rows,
        BLOCK_K=tile.blocks["BLOCK_K"],
        PRECISION=dot_precision(rows.device),
        **tile.options,
    )
    return out


def gradient_rows(
    weights: Tensor,
    alpha: Tensor,
    right: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """`reference.gradient_rows`."""
    return rows_and_sums(weights, alpha, right, centre, sizes)[0]


def inner(rows: Tensor) -> Tensor:
    """`reference.inner`."""
    return symmetric_product(rows.flatten(1, 2))


def agop(
    gram: Tensor,
    weights: Tensor,
    alpha: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Carry]:
    """`reference.agop`, symmetric to the last bit; padded rows and columns are zero."""
    rows, sums = rows_and_sums(weights, alpha, gram, centre, sizes)
    following = symmetric_product(rows.flatten(1, 2), sizes)
    return following, Carry(weights, alpha, sums, centre, sizes, rows=rows)
