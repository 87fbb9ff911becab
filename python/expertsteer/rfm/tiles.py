"""The n x n kernel matrix as tiles that are kept while memory lasts and computed again beyond."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops.products import times_transposed

SAMPLE = 1024  # rows among whose distances the median is first looked for
BRACKET = 0.01  # share of the distances gathered on either side of it


class KernelTiles:
    """Laplace kernel of n points seen through a metric, by tiles on and below the diagonal.

    Args:
        seen: ``X M [n, d]``; points: ``X [n, d]``.
        tile: rows of a tile.
        store: flat memory for kept tiles. One piece, allocated once: kept tiles among passing ones
            would leave the allocator with holes.
    """

    def __init__(self, seen: Tensor, points: Tensor, tile: int, store: Tensor):
        self.seen, self.points = seen, points
        self.norms = (seen * points).sum(dim=1)  # diag(P)
        n = len(points)
        rows = [slice(first, min(first + tile, n)) for first in range(0, n, tile)]
        self.places = [(i, j) for a, i in enumerate(rows) for j in rows[: a + 1]]
        self.bandwidth: Tensor | None = None
        self._kept: dict[int, Tensor] = {}
        self._store = store

    def distances(self, i: slice, j: slice) -> Tensor:
        product = self._product(i, j)
        squared = product.mul_(-2).add_(self.norms[i].unsqueeze(1)).add_(self.norms[j])
        if i == j:
            squared.diagonal().zero_()
        return squared.clamp_(min=0).sqrt_()

    def _product(self, i: slice, j: slice) -> Tensor:
        seen, points = self.seen[i], self.points[j]
        return times_transposed(seen, points) if not seen.is_cuda else seen @ points.T

    def set_bandwidth(self, factor: float, mode: str) -> Tensor:
        """Fix L, exactly as the other regimes do, and turn the tiles kept so far into kernel."""
        typical = self._median() if mode == "median" else self.norms.new_ones(())
        tiny = torch.finfo(typical.dtype).tiny
        self.bandwidth = factor * typical.clamp(min=tiny)
        for tile in self._kept.values():
            tile.div_(-self.bandwidth).exp_()
        return self.bandwidth

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """``(rows, columns, K)`` of every tile, not to be changed."""
        for place, (i, j) in enumerate(self.places):
            tile = self._kept.get(place)
            if tile is None:
                tile = self.distances(i, j).div_(-self.bandwidth).exp_()
                tile = self._keep(place, tile)
            yield i, j, tile

    def _keep(self, place: int, tile: Tensor) -> Tensor:
        """The tile, moved to the store while that has room."""
        if tile.numel() > len(self._store):
            return tile
        slot, self._store = self._store[: tile.numel()], self._store[tile.numel() :]
        self._kept[place] = slot.view(tile.shape).copy_(tile)
        return self._kept[place]

    def weights(self, kernel: Tensor) -> Tensor:
        """``W = K / (L D)`` of a tile, zero where points coincide.

        ``D = -L log K``: in either precision that loses no more digits than the cancellation in D
        itself did.
        """
        scaled = kernel.log().neg_()  # D / L
        weights = kernel / scaled
        weights.masked_fill_((scaled <= 0) | (kernel <= 0), 0.0)
        return weights.div_(self.bandwidth).div_(self.bandwidth)

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
        inside. A bracket that misses is widened.
        """
        n = len(self.points)
        rank = (n * (n - 1) // 2 - 1) // 2
        sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SAMPLE]
        between = self._sampled(sample.to(self.points.device))
        reach = BRACKET
        while True:
            low, high = self._quantiles(between, 0.5 - reach, 0.5 + reach)
            below, inside, total = 0, [], 0.0
            for place, (i, j) in enumerate(self.places):
                tile = self._kept.get(place)
                if tile is None:
                    tile = self._keep(place, self.distances(i, j))
                values = tile.flatten()
                if i == j:  # each pair once, and no point with itself
                    lower = torch.tril_indices(len(tile), len(tile), -1, device=tile.device)
                    values = tile[lower[0], lower[1]]
                total += float(values.sum(dtype=torch.float64))
                below += int((values < low).sum())
                inside.append(values[(values >= low) & (values <= high)])
            gathered = torch.cat(inside)
            del inside
            if below <= rank < below + len(gathered):
                median = _select(gathered, rank - below)
                return median if bool(median > 0) else median + total / (n * (n - 1) / 2)
            reach *= 2

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
