"""The n x n kernel matrix as tiles that are kept while memory lasts and computed again beyond."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops.products import times_transposed
from ..support.tensors import permutation

SAMPLE = 1024  # rows among whose distances the median is first looked for
BRACKET = 0.01  # share of the distances gathered on either side of it
GATHERED = 0.04  # share of the distances there is memory for; twice what is expected


class TileMemory:
    """All that passing tiles are computed in, allocated once per fit.

    Fresh tiles of many sizes among kept ones would leave the allocator with holes, and the process
    with several times the memory that is in use.

    Args:
        points: ``X [n, d]``, whose type and device it takes.
        tile: rows of a tile.
        kept: bytes for tiles that are kept.
    """

    def __init__(self, points: Tensor, tile: int, kept: int):
        n, d = points.shape
        tile = min(tile, n)
        entries = min(kept // points.element_size(), n * (n + tile))
        self.kept = points.new_empty(entries)
        self._passing = points.new_empty(3, tile * tile)
        self._flags = points.new_empty(2, tile * tile, dtype=torch.bool)
        self.rows = points.new_empty(tile, d)
        self.gathered = points.new_empty(round(GATHERED * n * n / 2) + tile)

    def passing(self, which: int, rows: int, columns: int) -> Tensor:
        """Tile 0 (the kernel), 1 or 2 (its weights)."""
        return self._passing[which, : rows * columns].view(rows, columns)

    def flags(self, which: int, rows: int, columns: int) -> Tensor:
        return self._flags[which, : rows * columns].view(rows, columns)


class KernelTiles:
    """Laplace kernel of n points seen through a metric, by tiles on and below the diagonal.

    Args:
        seen: ``X M [n, d]``; points: ``X [n, d]``.
        tile: rows of a tile.
        memory: what the tiles are computed in; a tile lasts until the next one.
    """

    def __init__(self, seen: Tensor, points: Tensor, tile: int, memory: TileMemory):
        self.seen, self.points = seen, points
        self.norms = (seen * points).sum(dim=1)  # diag(P)
        n = len(points)
        rows = [slice(first, min(first + tile, n)) for first in range(0, n, tile)]
        self.places = [(i, j) for a, i in enumerate(rows) for j in rows[: a + 1]]
        self.bandwidth: Tensor | None = None
        self._kept: dict[int, Tensor] = {}
        self._memory, self._room = memory, memory.kept

    def distances(self, i: slice, j: slice) -> Tensor:
        product = self._product(i, j)
        squared = product.mul_(-2).add_(self.norms[i].unsqueeze(1)).add_(self.norms[j])
        if i == j:
            squared.diagonal().zero_()
        return squared.clamp_(min=0).sqrt_()

    def _product(self, i: slice, j: slice) -> Tensor:
        seen, points = self.seen[i], self.points[j]
        out = self._memory.passing(0, len(seen), len(points))
        if seen.is_cuda:
            return torch.mm(seen, points.T, out=out)
        return out.copy_(times_transposed(seen, points))

    def set_bandwidth(self, factor: float, mode: str) -> Tensor:
        """Fix L, exactly as the other regimes do, and turn the tiles kept so far into kernel."""
        typical = self._median() if mode == "median" else self.norms.new_ones(())
        tiny = torch.finfo(typical.dtype).tiny
        self.bandwidth = factor * typical.clamp(min=tiny)
        for tile in self._kept.values():
            tile.div_(-self.bandwidth).exp_()
        return self.bandwidth

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """``(rows, columns, K)`` of every tile, not to be changed and gone with the next one."""
        for place, (i, j) in enumerate(self.places):
            tile = self._kept.get(place)
            if tile is None:
                tile = self.distances(i, j).div_(-self.bandwidth).exp_()
                tile = self._keep(place, tile)
            yield i, j, tile

    def _keep(self, place: int, tile: Tensor) -> Tensor:
        """The tile, moved to where it is kept while that has room."""
        if tile.numel() > len(self._room):
            return tile
        slot, self._room = self._room[: tile.numel()], self._room[tile.numel() :]
        self._kept[place] = slot.view(tile.shape).copy_(tile)
        return self._kept[place]

    def weights(self, kernel: Tensor) -> Tensor:
        """``W = K / (L D)`` of a tile, zero where points coincide.

        ``D = -L log K``: in either precision that loses no more digits than the cancellation in D
        itself did.
        """
        memory, shape = self._memory, kernel.shape
        scaled = torch.log(kernel, out=memory.passing(1, *shape)).neg_()  # D / L
        weights = torch.div(kernel, scaled, out=memory.passing(2, *shape))
        weights.masked_fill_(torch.le(scaled, 0, out=memory.flags(0, *shape)), 0.0)
        return weights.div_(self.bandwidth).div_(self.bandwidth)

    def scaled_rows(self, scale: Tensor, rows: Tensor) -> Tensor:
        """``scale o rows`` for ``[t, 1]`` and ``[t, d]``."""
        return torch.mul(scale, rows, out=self._memory.rows[: len(rows)])

    def multiply(self, v: Tensor) -> Tensor:
        """``K v`` for ``[n, C]``, accumulated in v's type."""
        out = torch.zeros_like(v)
        narrow = v.to(self.points.dtype)
        for i, j, kernel in self:
            out[i] += kernel @ narrow[j]
            if i != j:
                out[j] += kernel.T @ narrow[i]
        return out

    def columns(self, chosen: Tensor) -> Tensor:
        """Columns ``[n, r]`` of K."""
        squared = self.seen @ self.points[chosen].T
        squared.mul_(-2).add_(self.norms.unsqueeze(1)).add_(self.norms[chosen])
        squared[chosen, torch.arange(len(chosen), device=chosen.device)] = 0
        return squared.clamp_(min=0).sqrt_().div_(-self.bandwidth).exp_()

    def _median(self) -> Tensor:
        """Lower median of all distances between different points, their mean where it is zero.

        The rows of a sample bracket it; one pass counts what lies below and gathers what lies
        inside. A bracket that misses is widened; where more lies inside than there is memory for,
        as where most distances are equal, the memory grows.
        """
        n = len(self.points)
        rank = (n * (n - 1) // 2 - 1) // 2
        between = self._sampled(permutation(n, seed=0)[:SAMPLE].to(self.points.device))
        reach = BRACKET
        while True:
            low, high = self._quantiles(between, 0.5 - reach, 0.5 + reach)
            below, inside, total = self._gather(low, high)
            if not below <= rank < below + inside:
                reach *= 2
            elif inside > len(self._memory.gathered):
                self._memory.gathered = self._memory.gathered.new_empty(inside)
            else:
                median = _select(self._memory.gathered[:inside], rank - below)
                return median if bool(median > 0) else median + total / (n * (n - 1) / 2)

    def _gather(self, low: Tensor, high: Tensor) -> tuple[int, int, float]:
        """How many distances lie below and inside, gathered as far as they fit, and their sum."""
        below, inside, total = 0, 0, 0.0
        for place, (i, j) in enumerate(self.places):
            tile = self._kept.get(place)
            if tile is None:
                tile = self._keep(place, self.distances(i, j))
            total += float(tile.sum(dtype=torch.float64)) / (2 if i == j else 1)
            values = tile if i != j else self._each_pair_once(tile)
            found = self._between(values, low, high)
            below += int(torch.lt(values, low, out=self._memory.flags(0, *values.shape)).sum())
            room = self._memory.gathered[inside : inside + len(found)]
            room.copy_(found[: len(room)])
            inside += len(found)
        return below, inside, total

    def _each_pair_once(self, tile: Tensor) -> Tensor:
        """A tile on the diagonal, NaN (which is in no bracket) on and above the diagonal."""
        upper = self._memory.flags(0, *tile.shape).fill_(True).triu_()
        return self._memory.passing(1, *tile.shape).copy_(tile).masked_fill_(upper, torch.nan)

    def _between(self, values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What lies in the bracket; on a CPU by numpy: torch would take 16 bytes per value."""
        inside = torch.ge(values, low, out=self._memory.flags(0, *values.shape))
        inside &= torch.le(values, high, out=self._memory.flags(1, *values.shape))
        if values.is_cuda:
            return values[inside]
        return torch.from_numpy(values.numpy()[inside.numpy()])

    def _sampled(self, rows: Tensor) -> Tensor:
        squared = self.seen[rows] @ self.points[rows].T
        squared.mul_(-2).add_(self.norms[rows].unsqueeze(1)).add_(self.norms[rows])
        lower = torch.tril_indices(len(rows), len(rows), -1, device=rows.device)
        return squared[lower[0], lower[1]].clamp_(min=0).sqrt_()

    @staticmethod
    def _quantiles(values: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        infinite = torch.tensor(torch.inf, dtype=values.dtype, device=values.device)
        a = _select(values, int(low * len(values))) if low > 0 else -infinite
        b = _select(values, int(high * len(values))) if high < 1 else infinite
        return a, b


def _select(values: Tensor, rank: int) -> Tensor:
    """The entry of that rank, from zero; on a CPU in place, as torch would copy it all twice."""
    if values.is_cuda:
        return values.kthvalue(rank + 1).values
    values.numpy().partition(rank)
    return values[rank].clone()
