"""The streamed regime: n x n does not fit, so the kernel comes by tiles and is never factorised.

The metric is a d x d matrix as in `feature`. Tiles are kept while the memory budget lasts and
computed again beyond it; the ridge regression is solved by preconditioned conjugate gradients.

Everything as large as a tile is allocated once per fit: see `TileMemory`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .feature import MetricFits
from .gram import Operations
from .pcg import NotSolvedError, solve_iteratively
from .plan import Plan, streamed_shape
from .problem import Problems
from .settings import Options, Setting
from .solve import RIDGE_STEP, RIDGE_STEPS
from .tiles import KernelTiles, TileMemory


class StreamedFits(MetricFits):
    """All fits of one problem in the streamed regime."""

    def __init__(
        self,
        points: Tensor,
        given: Problems,
        setting: Setting,
        options: Options,
        operations: Operations,
        plan: Plan,
    ):
        super().__init__(points, given, setting, options)
        self.ops, self.setting = operations, setting
        n, d = points.shape[1:]
        self.tile, self.rank, self.room = streamed_shape(
            n, d, given.y.shape[2], points.element_size(), plan.memory_budget
        )
        self.iterations: list[int] = []  # of the solver, per fit

    def run(self, held: Problems | None = None) -> StreamedFits:
        points, y = self.points[0], self.y[0]
        metric, seen = None, points  # M and X M
        memory = TileMemory(points, self.tile, self.room)
        for t in range(self.options.iters + 1):
            tiles = KernelTiles(seen, points, self.tile, memory)
            bandwidth = tiles.set_bandwidth(self.setting.bandwidth, self.options.bandwidth_mode)
            self._bandwidths.append(bandwidth.view(1))
            alpha = self._solve(tiles, y)
            self._keep(t, metric, alpha.unsqueeze(0), tiles.norms.unsqueeze(0), held)
            self.options.tick(len(self.y))
            if t == self.options.iters:
                break
            metric = self._outer_product(tiles, alpha, seen).unsqueeze(0)
            del tiles
            metric = self._next_metric(metric)
            seen = points @ metric[0]
        return self

    def _solve(self, tiles: KernelTiles, y: Tensor) -> Tensor:
        """``alpha``, at a larger ridge where reg is too small for the type, as in the others."""
        ridge = self.setting.reg
        for step in range(RIDGE_STEPS + 1):
            try:
                alpha, iterations = solve_iteratively(tiles, y, ridge, self.rank)
                break
            except NotSolvedError:
                if step == RIDGE_STEPS:
                    raise
                ridge *= RIDGE_STEP
        self.iterations.append(iterations)
        self.ridges.append(torch.full_like(self.reg, ridge))
        return alpha

    def _outer_product(self, tiles: KernelTiles, alpha: Tensor, seen: Tensor) -> Tensor:
        """``sum_c (T_c Z)^T (T_c Z)``, one output at a time so that one n x d is enough."""
        n, outputs = alpha.shape
        total, mean = None, torch.zeros_like(seen[0])
        for c in range(outputs):
            rows = self._gradient_rows(tiles, alpha[:, c : c + 1], seen)
            if self.setting.center_grads:
                mean += rows.sum(dim=0) / (n * outputs)
                if outputs == 1:
                    rows -= mean
            part = self.ops.inner(rows.view(1, 1, *rows.shape))[0]
            total = part if total is None else total.add_(part)
        if self.setting.center_grads and outputs > 1:
            total.addr_(mean, mean, alpha=-n * outputs)
        return total

    @staticmethod
    def _gradient_rows(tiles: KernelTiles, alpha: Tensor, seen: Tensor) -> Tensor:
        """``T Z = (W a) o Z - W (a o Z)`` for one output, ``[n, d]``."""
        rows, sums = torch.zeros_like(seen), torch.zeros_like(alpha)
        for i, j, kernel in tiles:
            weights = tiles.weights(kernel)
            rows[i].addmm_(weights, tiles.scaled_rows(alpha[j], seen[j]), alpha=-1)
            sums[i] += weights @ alpha[j]
            if i != j:
                rows[j].addmm_(weights.T, tiles.scaled_rows(alpha[i], seen[i]), alpha=-1)
                sums[j] += weights.T @ alpha[i]
        return rows.addcmul_(sums, seen)
