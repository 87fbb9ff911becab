"""Ridge regression whose penalty is chosen on rows left out, in closed form.

With standardised inputs X, targets Y, an intercept that is not penalised and the eigenvectors U of
``X X^T`` with eigenvalues s, fitted values are ``H Y`` with

    H = 1 1^T / N + U diag(s / (s + penalty)) U^T.

What the fit without the rows of a group B says of them differs from Y by
``(I - H_BB)^-1 (Y - H Y)_B`` (for single rows the PRESS residual of Allen, 1974). So one
factorisation serves every penalty, every group and every set of targets, and nothing is fitted
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .low_rank import standardised
from .maps import AffineMap

PENALTIES = tuple(10 ** (k / 2) for k in range(-8, 5))  # 1e-4 to 100, of the mean eigenvalue


@dataclass(frozen=True)
class LeftOut:
    """A map, and what it says of rows it was not fitted on.

    Attributes:
        map: onto the targets, in their own units.
        penalty: the best one, as a share of the mean eigenvalue.
        explained: share of the variance of the left-out rows that it explains, the mean over
            the targets' dimensions, each in its own units; below 0 where the mean says more.
        curve: ``(penalty, explained)`` of all.
    """

    map: AffineMap
    penalty: float
    explained: float
    curve: tuple[tuple[float, float], ...]


def left_out_ridge(
    x: Tensor,
    targets: Sequence[Tensor],
    groups: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> list[LeftOut]:
    """The ridge map onto each of several sets of targets, with the penalty that is best for it.

    Inputs and targets are standardised column by column, so that a few enormous dimensions neither
    set the penalty nor the choice; the map does not depend on the units of either.

    Args:
        x: ``[N, d]``; targets: ``[N, m]`` each, with widths of their own.
        groups: ``[N]`` whole numbers; rows of one are left out together, as those of one prompt
            are. By default every row is a group.
        penalties: as shares of the mean eigenvalue of ``X X^T``.

    Returns:
        One `LeftOut` per set of targets, computed in float64, its map in the type of the targets.

    Raises:
        ValueError: other numbers of rows, fewer than two groups, no target, a penalty that is not
            positive.
    """
    _require(x, targets, groups, penalties)
    inputs = standardised(x)
    goals = [standardised(target) for target in targets]
    values, vectors = _spectrum(inputs.values)
    widths = [goal.values.shape[1] for goal in goals]
    joint = torch.cat([goal.values for goal in goals], dim=1)
    turned = vectors.mT @ joint
    blocks = _blocks(groups, len(x))
    scale = float(values.mean())
    variances = [goal.values.square().sum(dim=0) for goal in goals]
    curves: list[list[float]] = [[] for _ in goals]
    for penalty in penalties:
        shrunk = values / (values + penalty * scale)
        residual = joint - vectors @ (shrunk.unsqueeze(1) * turned)
        errors = _left_out(residual, vectors, shrunk, blocks)
        for curve, error, variance in zip(curves, errors.split(widths), variances):
            varies = variance > 0
            share = 1 - error[varies] / variance[varies]
            curve.append(float(share.mean()) if bool(varies.any()) else float("nan"))
    found = []
    for goal, part, curve, target in zip(goals, turned.split(widths, 1), curves, targets):
        best = max(range(len(penalties)), key=lambda i, c=curve: (c[i] == c[i], c[i]))
        dual = vectors @ (part / (values + penalties[best] * scale).unsqueeze(1))
        weight = inputs.values.mT @ dual / inputs.deviation.unsqueeze(1) * goal.deviation
        fitted = AffineMap(*(t.to(target) for t in (inputs.mean, weight, goal.mean)))
        rows = tuple(zip(map(float, penalties), curve))
        found.append(LeftOut(fitted, float(penalties[best]), curve[best], rows))
    return found


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[r]`` of ``X X^T`` and eigenvectors ``[N, r]``, through the smaller side."""
    wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    size = max(x.shape) * torch.finfo(x.dtype).eps
    kept = values > size * values[-1].clamp(min=torch.finfo(x.dtype).tiny)
    values, vectors = values[kept], vectors[:, kept]
    if wide:
        return values, vectors
    return values, (x @ vectors) / values.sqrt()


def _blocks(groups: Tensor | None, count: int) -> list[Tensor]:
    """Rows of the groups ``[groups of one size, size]``, one entry per size."""
    if groups is None:
        return [torch.arange(count, device="cpu").unsqueeze(1)]
    numbers, counts = groups.cpu().unique(return_inverse=True)[1].sort(stable=True)
    sizes = numbers.bincount()
    starts = sizes.cumsum(0) - sizes
    found = []
    for size in sizes.unique().tolist():
        first = starts[sizes == size]
        found.append(counts[first.unsqueeze(1) + torch.arange(size, device="cpu")])
    return found


def _left_out(residual: Tensor, vectors: Tensor, shrunk: Tensor, blocks: list[Tensor]) -> Tensor:
    """Squared errors ``[m]`` of all rows, each by the fit without its group."""
    total, count = residual.new_zeros(residual.shape[1]), len(residual)
    for rows in blocks:
        rows = rows.to(residual.device)
        own = vectors[rows]  # [groups, size, r]
        hat = (own * shrunk) @ own.mT + 1 / count
        left = torch.eye(rows.shape[1], dtype=hat.dtype, device=hat.device) - hat
        total += torch.linalg.solve(left, residual[rows]).square().sum(dim=(0, 1))
    return total


def _require(
    x: Tensor, targets: Sequence[Tensor], groups: Tensor | None, penalties: Sequence[float]
) -> None:
    if not targets or any(len(target) != len(x) for target in targets):
        raise ValueError(
            f"targets must be at least one tensor of the {len(x)} rows of x, came "
            f"{[tuple(target.shape) for target in targets]}"
        )
    if groups is not None and tuple(groups.shape) != (len(x),):
        raise ValueError(f"groups must number the {len(x)} rows of x, came {tuple(groups.shape)}")
    count = len(x) if groups is None else len(groups.unique())
    if count < 2:
        raise ValueError(f"groups: at least 2 are needed to leave one out, came {count}")
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise ValueError(f"penalties must be positive and finite, came {list(penalties)}")
