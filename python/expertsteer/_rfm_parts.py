"""The pieces of a Recursive Feature Machine: what a fit leaves behind, new points, solver, AUC."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor

from .ops import reference


@dataclass
class Step:
    """What fit number t leaves behind for prediction and for the direction (B problems)."""

    gram: Tensor  # P_t, [B, n, n]
    weights: Tensor  # W_t, [B, n, n]
    alpha: Tensor  # [B, n, C]
    bandwidth: Tensor  # L_t, [B]
    rescale: Tensor  # [B], what the AGOP of this fit was divided by


class Rows:
    """New points seen through the metric: ``V = X_new M X^T`` and ``diag(X_new M X_new^T)``."""

    def __init__(self, new: Tensor, points: Tensor):
        self.cross = new @ points.mT  # V, [B, m, n]
        self.square = new.square().sum(dim=-1)  # [B, m]

    def predict(self, step: Step) -> Tensor:
        diagonal = step.gram.diagonal(dim1=-2, dim2=-1)
        squared = self.square.unsqueeze(-1) + diagonal.unsqueeze(-2) - 2 * self.cross
        kernel = torch.exp(-squared.clamp(min=0).sqrt() / step.bandwidth.view(-1, 1, 1))
        return kernel @ step.alpha

    def advance(self, step: Step, centre: bool) -> None:
        """Move to the next metric: ``V <- V (sum_c T_c^T T_c) P``."""
        transposed = self.cross.mT  # [B, n, m]
        left = reference.gradient_rows(step.weights, step.alpha, transposed, centre)
        right = reference.gradient_rows(step.weights, step.alpha, step.gram, centre)
        rescale = step.rescale
        self.cross = sum(a.mT @ b for a, b in zip(left, right)) / rescale.view(-1, 1, 1)
        self.square = sum(a.square().sum(dim=1) for a in left) / rescale.view(-1, 1)


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve per row of ``[B, N]``, ties counted half (Mann-Whitney)."""
    positive = (labels > 0.5).double()
    ranks = torch.from_numpy(rankdata(scores.cpu().numpy(), axis=-1))
    count = positive.sum(dim=-1)
    other = positive.shape[-1] - count
    if not bool(((count > 0) & (other > 0)).all()):
        raise ValueError("AUC needs both classes among the validation labels")
    positive, count, other = positive.cpu(), count.cpu(), other.cpu()
    return ((ranks * positive).sum(dim=-1) - count * (count + 1) / 2) / (count * other)


def solve(kernel: Tensor, y: Tensor, reg: float) -> Tensor:
    """``(K + reg 1)^-1 y`` by Cholesky; ``kernel`` is overwritten."""
    broken = ~torch.isfinite(kernel).all(dim=-1).all(dim=-1)
    if bool(broken.any()):
        raise ValueError(
            f"the kernel matrix of problems {broken.nonzero().flatten().tolist()} is not finite: "
            "the states' scale overflows their type; give float64 states"
        )
    kernel.diagonal(dim1=-2, dim2=-1).add_(reg)
    factor, failed = torch.linalg.cholesky_ex(kernel)
    if bool(failed.any()):
        raise ValueError(
            f"the kernel matrix of problems {failed.nonzero().flatten().tolist()} is not positive "
            f"definite at reg={reg}; raise reg or give float64 states"
        )
    return torch.cholesky_solve(y, factor)
