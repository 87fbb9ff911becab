"""The passes in plain torch: the definitions that faster backends are tested against.

Shapes carry a leading batch of independent problems ``B`` (layers, concepts, settings). All
functions keep the dtype and device they are given and accumulate in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .carry import Carry


def gram(points: Tensor) -> Tensor:
    """Inner products ``X X^T`` of ``[B, n, d]``, ``[B, n, n]``, exactly symmetric."""
    product = points @ points.mT
    return (product + product.mT) / 2


def cross_gram(left: Tensor, right: Tensor) -> Tensor:
    """``left right^T`` of ``[B, n, d]`` where that is symmetric, ``[B, n, n]``.

    Fast backends leave the upper triangle undefined.
    """
    product = left @ right.mT
    return (product + product.mT) / 2


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """``left right^T`` of ``[B, m, k]`` and ``[B, n, k]``."""
    return left @ right.mT


def inner(rows: Tensor) -> Tensor:
    """``sum_c G_c^T G_c`` of ``[B, C, n, d]``, ``[B, d, d]``."""
    rows = rows.flatten(1, 2)
    product = rows.mT @ rows
    return (product + product.mT) / 2


def distances(gram: Tensor) -> Tensor:
    """Pairwise distances ``D_ij = sqrt(P_ii + P_jj - 2 P_ij)`` of a Gram matrix ``[B, n, n]``."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)  # [B, n]
    squared = diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2) - 2 * gram
    squared.diagonal(dim1=-2, dim2=-1).zero_()  # exact, where rounding would leave sqrt(eps)
    return squared.clamp_(min=0).sqrt_()


def median_distance(gram: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Lower median of the distances between different points of each problem, ``[B]``.

    Their mean where more than half of the pairs coincide: that is still a scale. Needs 2 points.
    """
    distance = distances(gram)
    counts = _sizes(gram, sizes)
    scales = []
    for problem, count in zip(distance, counts.tolist()):
        lower = torch.tril_indices(count, count, offset=-1, device=gram.device)
        between = problem[lower[0], lower[1]]
        median = between.median()
        scales.append(median if bool(median > 0) else between.mean())
    return torch.stack(scales)


def laplace(
    gram: Tensor, bandwidth: Tensor, sizes: Tensor | None = None, eps: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Laplace kernel of a Gram matrix and the weights of its gradient.

    ``K_ij = exp(-D_ij / L)`` and ``W_ij = K_ij / (L D_ij)``, zero where ``D_ij < eps L``.

    Args:
        gram: ``[B, n, n]``, ``P = X M X^T``.
        bandwidth: ``[B]``, ``L > 0``.
        sizes: ``[B]``, the points of each problem; later rows are padding, with the identity's
            rows in K and zeros in W. ``None``: all n.
        eps: distance, in bandwidths, below which two points count as one.

    Returns:
        ``K`` and ``W``, both ``[B, n, n]``; fast backends leave the upper triangle of K undefined.
    """
    distance = distances(gram)
    bandwidth = bandwidth.view(-1, 1, 1)
    kernel = torch.exp(-distance / bandwidth)
    apart = distance >= eps * bandwidth
    weights = torch.where(apart, kernel / (bandwidth * distance), 0.0)
    if sizes is not None:
        rows = torch.arange(gram.shape[1], device=gram.device) < sizes.view(-1, 1)  # [B, n]
        inside = rows.unsqueeze(1) & rows.unsqueeze(2)
        unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        kernel = torch.where(inside, kernel, unit)
        weights = torch.where(inside, weights, 0.0)
    return kernel, weights


def laplace_points(
    left: Tensor,
    right: Tensor,
    left_norms: Tensor,
    right_norms: Tensor,
    bandwidth: Tensor,
    eps: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    """`laplace` between two sets of points, without their Gram matrix.

    Args:
        left: ``[B, m, d]``, one set seen through the metric (X M); right: ``[B, n, d]``, the other.
        left_norms: ``[B, m]``; right_norms: ``[B, n]``: squared lengths in the metric.
        bandwidth: ``[B]``.

    Returns:
        ``K`` and ``W``, both ``[B, m, n]``.
    """
    squared = left_norms.unsqueeze(-1) + right_norms.unsqueeze(-2) - 2 * left @ right.mT
    distance = squared.clamp_(min=0).sqrt_()
    bandwidth = bandwidth.view(-1, 1, 1)
    kernel = torch.exp(-distance / bandwidth)
    apart = distance >= eps * bandwidth
    return kernel, torch.where(apart, kernel / (bandwidth * distance), 0.0)


def ridge_solve(kernel: Tensor, reg: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``(K + reg 1)^-1 y`` by Cholesky, from the lower triangle of ``kernel``, which is lost.

    Args:
        kernel: ``[B, n, n]``; reg: ``[B]``; y: ``[B, n, C]``.

    Returns:
        The solution ``[B, n, C]`` and ``[B]`` bool, where K + reg 1 was not positive definite or
        the solution is not finite (it is then meaningless).
    """
    kernel.diagonal(dim1=-2, dim2=-1).add_(reg.unsqueeze(-1))
    factor, failed = torch.linalg.cholesky_ex(kernel)
    alpha = torch.cholesky_solve(y, factor)
    return alpha, (failed != 0) | ~torch.isfinite(alpha).flatten(1).all(dim=1)


def gradient_rows(
    weights: Tensor,
    alpha: Tensor,
    right: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """``T_c right`` for every output c, with ``T_c = diag(W alpha_c) - W diag(alpha_c)``.

    ``-T_c X M`` holds the gradients of output c at the training points, so ``right = X M X^T``
    gives their inner products with the points, and ``right = X M`` the gradients themselves.

    Args:
        weights: ``[B, n, n]``; alpha: ``[B, n, C]``; right: ``[B, n, m]``.
        centre: ``[B]`` bool, the problems whose mean gradient over points and outputs is
            subtracted; ``None`` for none.
        sizes: ``[B]``, the points of each problem, ``None`` for all n.

    Returns:
        ``[B, C, n, m]``, zero in the rows of padding.
    """
    row_sums = weights @ alpha  # [B, n, C]
    rows = torch.stack(
        [
            row_sums[..., c, None] * right - weights @ (alpha[..., c, None] * right)
            for c in range(alpha.shape[-1])
        ],
        dim=1,
    )
    if centre is not None and bool(centre.any()):
        rows = rows - centre.view(-1, 1, 1, 1) * _mean_row(rows, sizes)
        if sizes is not None:
            padding = torch.arange(rows.shape[2], device=rows.device) >= sizes.view(-1, 1, 1)
            rows = rows.masked_fill(padding.unsqueeze(-1), 0.0)
    return rows


def _mean_row(rows: Tensor, sizes: Tensor | None) -> Tensor:
    """Mean over outputs and points of ``[B, C, n, m]`` whose padding is zero, ``[B, 1, 1, m]``."""
    points = _sizes(rows, sizes, dim=2).to(rows.dtype).view(-1, 1, 1, 1)
    return rows.sum(dim=(1, 2), keepdim=True) / (rows.shape[1] * points)


def _sizes(tensor: Tensor, sizes: Tensor | None, dim: int = 1) -> Tensor:
    full = tensor.new_full(tensor.shape[:1], tensor.shape[dim], dtype=torch.int64)
    return full if sizes is None else sizes


def agop(
    gram: Tensor,
    weights: Tensor,
    alpha: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Carry]:
    """One step of the recurrence: ``P B P`` with ``B = sum_c T_c^T T_c``.

    With ``M' = sum_c G_c^T G_c`` the average gradient outer product (unnormalised) of the gradients
    ``G_c = -T_c X M``, that is ``X M' X^T``.

    Args:
        gram: ``[B, n, n]``; weights: ``[B, n, n]``; alpha: ``[B, n, C]``; centre, sizes: as in
            `gradient_rows`.

    Returns:
        The next Gram matrix ``[B, n, n]``, exactly symmetric, and the map from one metric to the
        next (`Carry`).
    """
    rows = gradient_rows(weights, alpha, gram, centre, sizes)
    stacked = rows.flatten(1, 2)  # [B, C n, n]
    following = stacked.mT @ stacked
    following = (following + following.mT) / 2
    return following, Carry(weights, alpha, weights @ alpha, centre, sizes, rows=rows)
