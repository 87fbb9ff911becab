"""What the three regimes have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.numbers import setting
from .metrics import better
from .problem import Problems
from .spectrum import Directions


class Fits:
    """What every regime offers: the fits of a batch of B problems, and the one kept for each.

    Attributes:
        best: ``[B]``, the kept fit; reg: ``[B]``; y: ``[B, n, C]``; points: ``[Q, n, d]`` shared by
            the B / Q settings of each; metrics, ridges: per fit, each ``[B]``; bytes: held.
    """

    best: Tensor
    reg: Tensor
    y: Tensor
    points: Tensor
    sizes: Tensor | None
    metrics: list[Tensor]
    ridges: list[Tensor]
    _bandwidths: list[Tensor]

    @property
    def bandwidths(self) -> Tensor:
        """``[fits, B]``."""
        return torch.stack(self._bandwidths)

    @property
    def bytes(self) -> int:
        return 0

    def forget(self) -> None:
        """Drop what can be computed again."""

    def run(self, held: Problems | None = None) -> Fits:
        """Fit ``iters + 1`` times; validation rows choose the best."""
        raise NotImplementedError

    def predict(self, new: Tensor) -> Tensor:
        """Outputs ``[B, m, C]`` of the kept fit at centred points ``[Q, m, d]``."""
        raise NotImplementedError

    def directions(self, count: int, explained: bool = True) -> Directions:
        """Leading eigenvectors of the kept fit's metric, signed by the first output."""
        raise NotImplementedError

    def keep_best(self, tuning_metric: str) -> None:
        if self.metrics:
            turned = better(tuning_metric, torch.stack(self.metrics))
            self.best = turned.argmax(dim=0)  # the first of equals

    def signed(self, vectors: Tensor) -> Tensor:
        """``[B, k, d]`` such that projections of the points correlate with the first output."""
        points, y = self.points, self.y[..., 0]
        joined = vectors.reshape(len(points), -1, points.shape[2])
        projections = (joined @ points.mT).view(*vectors.shape[:2], points.shape[1])
        rows = y.new_ones(y.shape)
        if self.sizes is not None:
            rows = (torch.arange(y.shape[1], device=y.device) < self.sizes.view(-1, 1)).to(y.dtype)
        mean = (y * rows).sum(dim=1, keepdim=True) / rows.sum(dim=1, keepdim=True)
        covariance = projections @ ((y - mean) * rows).unsqueeze(-1)  # [B, k, 1]
        return torch.where(covariance < 0, -vectors, vectors)


class NoGradientError(ValueError):
    """A fit whose gradients vanished or overflowed: it has no direction to give."""


def require_gradients(lost: Tensor, bandwidth: Tensor, mode: str) -> None:
    """Refuse problems (``[B]`` bool) whose gradients vanished or overflowed."""
    if bool(lost.any()):
        raise NoGradientError(
            f"the gradients of problems {lost.nonzero().flatten().tolist()} vanish or overflow "
            f"at bandwidth={setting(float(bandwidth[lost][0]))} ({mode}): it is too small for the "
            "distances, the labels are all zero, or the states' scale is extreme; raise "
            "bandwidth or give float64 states"
        )
