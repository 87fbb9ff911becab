"""Conjugate gradients for ``(K + reg 1) alpha = y`` with a Nystrom preconditioner.

K is nearly of low rank plus a multiple of the identity: points in many dimensions are all far from
one another. A Nystrom approximation from r of its columns takes the first part, the mean of what
it leaves on the diagonal takes the second (Frangella, Tropp, Udell, "Randomized Nystrom
Preconditioning", SIAM J. Matrix Anal. Appl. 2023, arXiv 2110.02820), and few iterations remain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.numbers import setting, short
from ..support.tensors import permutation
from .tiles import KernelTiles

MOST_ITERATIONS = 1000
PATIENCE = 30  # iterations without a smaller residual


class NotSolvedError(ValueError):
    """Rounding makes K + reg 1 indefinite: no precision of the points' type solves it."""


class Nystrom:
    """``(F F^T + delta 1)^-1`` with F from r columns of the kernel."""

    def __init__(self, tiles: KernelTiles, reg: float, rank: int):
        n = len(tiles.points)
        chosen = permutation(n, seed=1)[:rank].to(tiles.points.device)
        columns = tiles.columns(chosen)  # [n, r]
        core = columns[chosen].double()
        core = (core + core.T) / 2
        # Enough of the identity that the factor exists in the precision that the columns have.
        jitter = 10 * torch.finfo(columns.dtype).eps * rank
        core.diagonal().add_(jitter)
        factor, failed = torch.linalg.cholesky_ex(core)
        if bool(failed):
            raise ValueError(
                "the kernel matrix is not positive definite in its type; give float64 states"
            )
        factor = factor.to(columns.dtype)
        self.F = torch.linalg.solve_triangular(factor, columns.T, upper=False)  # F^T, [r, n]
        left = 1 - float(self.F.square().sum(dtype=torch.float64)) / n  # of the unit diagonal
        self.delta = reg + max(left, 0.0)
        small = (self.F @ self.F.T).double()
        small.diagonal().add_(self.delta)
        self.small = torch.linalg.cholesky(small)

    def __call__(self, v: Tensor) -> Tensor:
        inside = torch.cholesky_solve((self.F @ v.to(self.F.dtype)).double(), self.small)
        return (v - (self.F.T @ inside.to(self.F.dtype)).double()) / self.delta


def solve_iteratively(tiles: KernelTiles, y: Tensor, reg: float, rank: int) -> tuple[Tensor, int]:
    """``alpha [n, C]`` and the iterations it took, to the precision of the points' type.

    Raises:
        NotSolvedError: it does not converge, which a kernel matrix and reg > 0 do not do short of
            rounding.
    """
    eps = torch.finfo(tiles.points.dtype).eps
    preconditioned = Nystrom(tiles, reg, rank)
    target = y.double()
    alpha = torch.zeros_like(target)
    residual = target.clone()
    size = target.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    direction = z = preconditioned(residual)
    product = (residual * z).sum(dim=0)
    best, best_at, kept = torch.inf, 0, alpha
    for iteration in range(1, MOST_ITERATIONS + 1):
        image = tiles.multiply(direction) + reg * direction
        step = product / (direction * image).sum(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        alpha = alpha + step * direction
        residual = residual - step * image
        error = float((residual.norm(dim=0) / size).max())
        if error < best:
            best, best_at, kept = error, iteration, alpha
        if best <= 10 * eps or iteration - best_at >= PATIENCE:
            break
        z = preconditioned(residual)
        following = (residual * z).sum(dim=0)
        direction = z + following / product.clamp(min=torch.finfo(torch.float64).tiny) * direction
        product = following
    if best > 1e4 * eps:
        raise NotSolvedError(
            f"conjugate gradients stopped at a relative residual of {short(float(best), 2)} after "
            f"{iteration} iterations at reg={setting(reg)}; raise reg, give float64 states, or "
            "raise memory_budget so that a factorisation fits"
        )
    return kept.to(y.dtype), iteration
