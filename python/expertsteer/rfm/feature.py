"""The feature regime, for more points than about 1.5 times their dimensions.

The metric M is held as a d x d matrix and the points through it as ``Z = X M``, which stands in for
any root or factor of M: ``P = X M X^T = Z X^T`` is symmetric, so half a product gives it, and the
gradients at the points are the rows of ``-T_c Z``:

    P = Z X^T      K, W, alpha, T_c as in `gram`      M <- sum_c (T_c Z)^T (T_c Z)      Z <- X M
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rfm import native
from .fits import Fits, require_gradients
from .gram import Operations
from .metrics import better, score
from .problem import Problems
from .settings import Options, Setting, columns
from .solve import solve_raising_ridge
from .spectrum import Directions, lanczos, noise_like


class MetricFits(Fits):
    """Fits whose metric is a matrix ``[B, d, d]``: what is kept of them, and its use."""

    def __init__(self, points: Tensor, given: Problems, setting: Setting, options: Options):
        self.points, self.y, self.sizes, self.options = points, given.y, given.sizes, options
        self.factor, self.reg, self.centre = columns((setting,), len(points), points)
        self.metrics, self.ridges, self._bandwidths = [], [], []
        self.best = points.new_full((len(points),), options.iters, dtype=torch.int64)
        self._top = points.new_full((len(points),), -torch.inf)
        # Of the kept fit: the metric (None for the identity), alpha, diag(P); and the AGOP.
        self._metric: Tensor | None = None
        self._alpha = self._diagonal = self._agop = None

    def _keep(self, t: int, metric: Tensor | None, alpha: Tensor, diagonal: Tensor, held) -> None:
        """Keep fit t where it is the best so far, or without validation rows if it is the last."""
        if held is None:
            better_here = torch.full_like(self.best, t == self.options.iters, dtype=torch.bool)
        else:
            outputs = self._outputs(metric, alpha, diagonal, self._bandwidths[t], held.X)
            measured = score(self.options.tuning_metric, outputs, held.y, held.sizes).to(outputs)
            self.metrics.append(measured)
            turned = better(self.options.tuning_metric, measured)
            better_here = turned > self._top
            self._top = torch.where(better_here, turned, self._top)
        self.best = torch.where(better_here, t, self.best)
        if bool(better_here.all()):
            self._metric, self._alpha, self._diagonal = metric, alpha, diagonal
            self._agop = metric
        elif bool(better_here.any()):
            where = better_here.view(-1, 1, 1)
            self._metric = torch.where(where, metric, self._as_matrix(self._metric))
            self._agop = torch.where(where, metric, self._as_matrix(self._agop))
            self._alpha = torch.where(where, alpha, self._alpha)
            self._diagonal = torch.where(better_here.view(-1, 1), diagonal, self._diagonal)

    def _next_metric(self, metric: Tensor) -> Tensor:
        """An AGOP as the metric of the next fit."""
        largest = metric.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
        lost = ~(torch.isfinite(largest) & (largest > 0))
        require_gradients(lost, self.factor, self.options.bandwidth_mode)
        if self.options.normalize == "max":
            metric = metric / largest.view(-1, 1, 1)
        if self._agop is None:  # the identity has no direction: a kept fit 0 shows its own AGOP
            self._agop = metric
        return metric

    def _as_matrix(self, metric: Tensor | None) -> Tensor:
        batch, _, d = self.points.shape
        if metric is not None:
            return metric
        one = torch.eye(d, dtype=self.points.dtype, device=self.points.device)
        return one.expand(batch, d, d)

    def _outputs(self, metric, alpha, diagonal, bandwidth, new: Tensor) -> Tensor:
        seen = new if metric is None else new @ metric
        squared = (seen * new).sum(dim=-1, keepdim=True) + diagonal.unsqueeze(1)
        squared = squared - 2 * (seen @ self.points.mT)
        kernel = squared.clamp_(min=0).sqrt_().div_(-bandwidth.view(-1, 1, 1)).exp_()
        return kernel @ alpha

    def predict(self, new: Tensor) -> Tensor:
        bandwidth = self.bandwidths.gather(0, self.best.unsqueeze(0))[0]
        return self._outputs(self._metric, self._alpha, self._diagonal, bandwidth, new)

    def directions(self, count: int, explained: bool = True) -> Directions:
        scale = self._agop.diagonal(dim1=-2, dim2=-1).amax(dim=-1).view(-1, 1)
        towards = (self.points.mT @ self._alpha[..., :1]).squeeze(-1)
        start = towards + noise_like(towards)

        def apply(vector: Tensor) -> Tensor:
            return (self._agop @ vector.unsqueeze(-1)).squeeze(-1) / scale

        vectors, values, _ = lanczos(lambda v: v, apply, count, start)
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        values = values.clamp(min=0).double() * scale.double()
        trace = self._agop.diagonal(dim1=-2, dim2=-1).double().sum(dim=-1, keepdim=True)
        return Directions(self.signed(vectors), values, values / trace)


class FeatureFits(MetricFits):
    """All fits of B problems in the feature regime."""

    def __init__(
        self,
        points: Tensor,
        given: Problems,
        setting: Setting,
        options: Options,
        operations: Operations,
    ):
        super().__init__(points, given, setting, options)
        self.ops = operations

    def run(self, held: Problems | None = None) -> FeatureFits:
        points = self.points
        metric, seen = None, points  # M and X M
        batch, n, _ = points.shape
        buffer = points.new_empty(batch, n, n) if self.ops.reuses_buffers else None
        for t in range(self.options.iters + 1):
            alpha, diagonal, weights = self._fit(seen, buffer)
            self._keep(t, metric, alpha, diagonal, held)
            self.options.tick(len(self.y))
            if t == self.options.iters:
                break
            rows = self._gradient_rows(weights, alpha, seen, buffer)  # [B, C, n, d]
            del weights
            metric = self._next_metric(self.ops.inner(rows))
            seen = points @ metric
        return self

    def _fit(self, seen: Tensor, buffer: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha``, ``diag(P)`` and ``W`` of one fit."""
        gram = self.ops.cross_gram(seen, self.points, buffer)
        diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
        bandwidth = self.factor
        if self.options.bandwidth_mode == "median":
            median = self.ops.median_distance(gram, self.sizes)
            bandwidth = self.factor * median.clamp(min=torch.finfo(gram.dtype).tiny)
        self._bandwidths.append(bandwidth)
        weights = None

        def fresh() -> Tensor:
            nonlocal gram, weights
            if gram is None:  # the last factorisation took its place
                gram = self.ops.cross_gram(seen, self.points, buffer)
            if buffer is None:
                kernel, weights = self.ops.laplace(gram, bandwidth, self.sizes)
            else:
                kernel = buffer
                weights = torch.empty_like(buffer) if weights is None else weights
                native.laplace_into(gram, bandwidth, self.sizes, kernel, weights)
            gram = None
            return kernel

        alpha, ridge = solve_raising_ridge(fresh, self.y, self.reg, self.ops.ridge_solve)
        self.ridges.append(ridge)
        return alpha, diagonal, weights

    def _gradient_rows(self, weights, alpha, seen, buffer) -> Tensor:
        if buffer is None:
            return self.ops.gradient_rows(weights, alpha, seen, self.centre, self.sizes)
        return native.gradient_rows(weights, alpha, seen, self.centre, self.sizes, scratch=buffer)
