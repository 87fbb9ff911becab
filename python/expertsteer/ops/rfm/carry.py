"""The linear map by which one step of the RFM recurrence takes a metric to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Carry:
    """``B P = sum_c T_c^T (T_c P)`` of one step, in the factors that the step has computed anyway.

    ``M' X^T = M X^T (B P)``, so predictions and eigenvectors follow a chain of these maps.
    """

    weights: Tensor  # W, [B, n, n]
    alpha: Tensor  # [B, n, C]
    sums: Tensor  # W alpha, [B, n, C]
    centre: Tensor | None  # [B] bool, where the mean gradient was taken off
    sizes: Tensor | None  # [B], the points of each problem
    rows: Tensor  # T_c P, the mean taken off where centred, [B, C, n, n]

    def apply(self, columns: Tensor) -> Tensor:
        """``B P columns`` for ``[B, n, k]``."""
        total = None
        for c in range(self.rows.shape[1]):
            image = self.rows[:, c] @ columns
            # T_c^T = diag(W alpha_c) - diag(alpha_c) W: T_c itself is not symmetric.
            term = self.sums[..., c, None] * image
            term -= self.alpha[..., c, None] * (self.weights @ image)
            total = term if total is None else total.add_(term)
        return total

    def advance(self, cross: Tensor) -> tuple[Tensor, Tensor]:
        """New points seen through the next metric.

        From ``V = X_new M X^T`` of ``[B, m, n]`` to ``V B P`` and to the diagonal of
        ``V B V^T = X_new M' X_new^T``, ``[B, m]``.
        """
        factors = self.gradients(cross)  # V T_c^T
        square = sum(f.square().sum(dim=-1) for f in factors)
        return sum(f @ self.rows[:, c] for c, f in enumerate(factors)), square

    def gradients(self, cross: Tensor) -> list[Tensor]:
        """The gradients at the points as V sees them: ``V T_c^T`` for every output c.

        Where centred, the mean over points and outputs is taken off.
        """
        outputs, n = self.alpha.shape[2], cross.shape[2]
        factors = []
        for c in range(outputs):
            factor = (cross * self.alpha[..., c].unsqueeze(1)) @ self.weights
            factors.append(torch.addcmul(-factor, cross, self.sums[..., c].unsqueeze(1)))
        if self.centre is None or not bool(self.centre.any()):
            return factors
        sizes = cross.new_full(cross.shape[:1], n) if self.sizes is None else self.sizes
        mean = sum(f.sum(dim=-1, keepdim=True) for f in factors)  # padding is zero, [B, m, 1]
        mean = mean * (self.centre / (outputs * sizes)).view(-1, 1, 1)
        inside = torch.arange(n, device=cross.device) < sizes.view(-1, 1, 1)
        return [f - mean * inside for f in factors]
