"""What the fits of the Gram regime leave behind, and new points seen through their metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import Carry


@dataclass
class Step:
    """Fit number t of B problems: all that predictions and eigenvectors need of it."""

    diagonal: Tensor  # of P_t, [B, n]
    alpha: Tensor  # [B, n, C]
    bandwidth: Tensor  # L_t, [B]
    carry: Carry | None = None  # to the next metric; none after the last fit
    rescale: Tensor | None = None  # [B], what the next metric was divided by


class Rows:
    """New points seen through the metric: ``V = X_new M X^T`` and ``diag(X_new M X_new^T)``."""

    def __init__(self, new: Tensor, points: Tensor):
        self.cross = new @ points.mT  # V, [B, m, n]
        self.square = new.square().sum(dim=-1)  # [B, m]

    def repeated(self, times: int) -> Rows:
        """The same rows for ``times`` settings of each problem."""
        if times == 1:
            return self
        other = object.__new__(Rows)
        other.cross = self.cross.repeat_interleave(times, dim=0)
        other.square = self.square.repeat_interleave(times, dim=0)
        return other

    def predict(self, step: Step) -> Tensor:
        squared = self.square.unsqueeze(-1) + step.diagonal.unsqueeze(-2) - 2 * self.cross
        kernel = squared.clamp_(min=0).sqrt_().div_(-step.bandwidth.view(-1, 1, 1)).exp_()
        return kernel @ step.alpha

    def advance(self, step: Step) -> None:
        """Move to the next metric, ``V <- V B P``."""
        self.cross, self.square = step.carry.advance(self.cross)
        if step.rescale is not None:
            self.cross = self.cross / step.rescale.view(-1, 1, 1)
            self.square = self.square / step.rescale.view(-1, 1)


def select(best: Tensor, t: int, here: Tensor, otherwise: Tensor | None) -> Tensor:
    """Outputs ``[B, m, C]`` with those of fit t where it is the kept one."""
    if otherwise is None:
        return here
    return torch.where((best == t).view(-1, 1, 1), here, otherwise)
