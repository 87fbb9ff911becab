"""What the Triton kernels share: tile configurations, the order of the tiles, the launch.

Every kernel runs on a grid of one dimension, the only one that may exceed 65535 programs, and
finds its problem and its tile by division: a batch of 100,000 small problems is one launch.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Equal in all configurations, so that every one of them adds up the products in the same steps.
BLOCK_K = 16
# Programs that keep a large GPU (132 to 148 multiprocessors, two programs each) busy.
ENOUGH_PROGRAMS = 264


class Tile(NamedTuple):
    """One configuration of a kernel; those listed compile without spills (tests/ops)."""

    rows: int
    columns: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}/{self.warps}"

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}

    @property
    def blocks(self) -> dict[str, int]:
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": BLOCK_K}

    def count(self, rows: int, columns: int) -> int:
        """Tiles that cover ``rows x columns``."""
        return triton.cdiv(rows, self.rows) * triton.cdiv(columns, self.columns)

    def count_upper(self, n: int) -> int:
        """Tiles that cover the upper triangle of ``n x n``, the diagonal included."""
        tiles = triton.cdiv(n, self.rows)
        return tiles * (tiles + 1) // 2


def choose_tile(tiles: tuple[Tile, ...], rows: int, columns: int, problems: int) -> Tile:
    """The largest tile (they are listed from the smallest) that still fills the device.

    A function of the shape alone: timing the candidates at run time would let two runs on the
    same input take different tiles, and with them different roundings.
    """
    for tile in reversed(tiles):
        if problems * tile.count(rows, columns) >= ENOUGH_PROGRAMS:
            return tile
    return tiles[0]


def dot_precision(device: torch.device) -> str:
    """Single precision from three tensor-core passes where they exist; never plain tf32."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return "tf32x3" if nvidia and torch.cuda.get_device_capability(device)[0] >= 8 else "ieee"


def launch(kernel, programs: int, like: Tensor, *arguments, **options) -> None:
    """Start ``programs`` programs on the device of ``like``, which need not be the current one."""
    if programs:  # an empty batch has nothing to do, and an empty grid is an error
        with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
            kernel[(programs,)](*arguments, **options)


@triton.jit
def upper_tile(index):
    """Row and column of tile number ``index``, counting an upper triangle column by column.

    Column c starts at c (c + 1) / 2. The root is rounded, but for every 32-bit index by less than
    one column, so one step either way makes it exact.
    """
    index = index.to(tl.int64)
    column = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int64)
    column += ((column + 1) * (column + 2) // 2 <= index).to(tl.int64)
    column -= (column * (column + 1) // 2 > index).to(tl.int64)
    return (index - column * (column + 1) // 2).to(tl.int32), column.to(tl.int32)


@triton.jit
def grouped_tile(index, row_tiles, column_tiles, GROUP: tl.constexpr = 8):
    """Row and column of tile number ``index``, going down ``GROUP`` rows before the next column.

    Programs that run together then share their rows and columns in the cache.
    """
    first = index // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = index % (GROUP * column_tiles)
    return first + within % height, within // height


@triton.jit
def valid_points(sizes, problem, n):
    """Points of a problem that are not padding."""
    if sizes is None:
        return n
    else:  # noqa: RET505 - triton compiles one branch only if it sees both
        return tl.load(sizes + problem).to(tl.int32)


@triton.jit
def upper_decides(tile, BLOCK: tl.constexpr):
    """A diagonal tile with its lower triangle replaced by the mirror image of the upper one."""
    here = tl.arange(0, BLOCK)
    return tl.where(here[:, None] <= here[None, :], tile, tl.trans(tile))


@triton.jit
def store_mirrored(out, tile, row_tile, column_tile, n, BLOCK: tl.constexpr):
    """Write a tile of an n x n matrix and, off the diagonal, its mirror image."""
    # 64 bits to the tile's corner, 32 within the tile: one register an offset instead of two.
    row, column = row_tile.to(tl.int64) * BLOCK, column_tile.to(tl.int64) * BLOCK
    here = tl.arange(0, BLOCK)
    inside = (here < n - row)[:, None] & (here < n - column)[None, :]
    tl.store(out + row * n + column + (here[:, None] * n + here[None, :]), tile, mask=inside)
    if column_tile > row_tile:
        flipped = (here < n - column)[:, None] & (here < n - row)[None, :]
        corner = out + column * n + row
        tl.store(corner + (here[:, None] * n + here[None, :]), tl.trans(tile), mask=flipped)
