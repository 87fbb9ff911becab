"""Every operation in plain torch: the definition that faster backends are tested against.

Shapes carry a leading batch of independent problems ``B`` (layers, concepts, settings). All
functions keep the dtype and device they are given and accumulate in it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def steer_add(hidden: Tensor, delta: Tensor, mask: Tensor | None = None) -> Tensor:
    """Add ``delta`` to the hidden states of the tokens that ``mask`` selects, out of place.

    Args:
        hidden: ``[batch, tokens, width]``.
        delta: ``[width]`` in float64 for a float64 ``hidden`` and in float32 otherwise; the sum
            is taken in that type and rounded once.
        mask: ``[batch, tokens]`` bool, ``None`` for every token. Unselected rows keep their bits.
    """
    steered = (hidden.to(delta.dtype) + delta).to(hidden.dtype)  # [batch, tokens, width]
    if mask is None:
        return steered
    return torch.where(mask.unsqueeze(-1), steered, hidden)


def distances(gram: Tensor) -> Tensor:
    """Pairwise distances ``D_ij = sqrt(P_ii + P_jj - 2 P_ij)`` of a Gram matrix ``[B, n, n]``."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)  # [B, n]
    squared = diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2) - 2 * gram
    squared.diagonal(dim1=-2, dim2=-1).zero_()  # exact, where rounding would leave sqrt(eps)
    return squared.clamp_(min=0).sqrt_()


def laplace(gram: Tensor, bandwidth: Tensor, eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Laplace kernel of a Gram matrix and the weights of its gradient.

    ``K_ij = exp(-D_ij / L)`` and ``W_ij = K_ij / (L D_ij)``, zero where ``D_ij < eps L``.

    Args:
        gram: ``[B, n, n]``, ``P = X M X^T``.
        bandwidth: ``[B]``, ``L > 0``.
        eps: distance, in bandwidths, below which two points count as one.

    Returns:
        ``K`` and ``W``, both ``[B, n, n]``.
    """
    distance = distances(gram)
    bandwidth = bandwidth.view(-1, 1, 1)
    kernel = torch.exp(-distance / bandwidth)
    apart = distance >= eps * bandwidth
    weights = torch.where(apart, kernel / (bandwidth * distance), 0.0)
    return kernel, weights


def gradient_rows(weights: Tensor, alpha: Tensor, right: Tensor, centre: bool) -> list[Tensor]:
    """``T_c right`` for every output c, with ``T_c = diag(W alpha_c) - W diag(alpha_c)``.

    ``-T_c X M`` holds the gradients of output c at the training points, so ``right = X M X^T``
    gives their inner products with the points. ``centre`` subtracts the mean gradient over
    points and outputs.

    Args:
        weights: ``[B, n, n]``; alpha: ``[B, n, C]``; right: ``[B, n, m]``.

    Returns:
        C tensors ``[B, n, m]``.
    """
    row_sums = weights @ alpha  # [B, n, C]
    rows = [
        row_sums[..., c, None] * right - weights @ (alpha[..., c, None] * right)
        for c in range(alpha.shape[-1])
    ]
    if centre:
        mean = sum(r.mean(dim=-2, keepdim=True) for r in rows) / len(rows)  # [B, 1, m]
        rows = [r - mean for r in rows]
    return rows


def agop(
    gram: Tensor, weights: Tensor, alpha: Tensor, right: Tensor | None = None, centre: bool = False
) -> Tensor:
    """One step of the recurrence: ``sum_c (T_c P)^T (T_c right)``, ``right = P`` unless given.

    With ``M' = sum_c G_c^T G_c`` the average gradient outer product (unnormalised) and
    ``G_c = -T_c X M``, the default is ``X M' X^T``; ``right = X M`` gives ``X M'``.

    Args:
        gram: ``[B, n, n]``; weights: ``[B, n, n]``; alpha: ``[B, n, C]``; right: ``[B, n, m]``.

    Returns:
        ``[B, n, m]``; exactly symmetric for the default.
    """
    left = gradient_rows(weights, alpha, gram, centre)
    others = left if right is None else gradient_rows(weights, alpha, right, centre)
    product = sum(a.transpose(-1, -2) @ b for a, b in zip(left, others))
    if right is None:
        product = (product + product.transpose(-1, -2)) / 2
    return product


def gaussian_information(x: Tensor, y: Tensor) -> Tensor:
    """Plug-in mutual information of jointly Gaussian samples, every pair of layers at once.

    ``I = -1/2 sum_i log(1 - s_i^2)`` with s the singular values of the correlation R of the
    whitened samples. Where one layer determines a component of the other the information is
    infinite; such components count at the resolution of the dtype (18 nats each in float64).

    Args:
        x: ``[L_x, n, r_x]`` and y: ``[L_y, n, r_y]``, paired rows, non-singular covariances.

    Returns:
        ``[L_x, L_y]`` in nats, biased upwards (see `expertsteer.pair.gaussian_bias`).
    """
    white_x, white_y = whiten(x), whiten(y)  # columns orthonormal: R = white_x^T white_y
    correlation = torch.einsum("anr,bns->abrs", white_x, white_y)  # [L_x, L_y, r_x, r_y]
    singular = torch.linalg.svdvals(correlation)  # [L_x, L_y, min(r_x, r_y)]
    singular = singular.clamp(max=1 - torch.finfo(y.dtype).eps)
    return -0.5 * torch.log1p(-singular.square()).sum(dim=-1)


def whiten(x: Tensor) -> Tensor:
    """Centre and decorrelate ``x [L, n, r]`` so that ``w^T w = 1`` (r x r Cholesky factor).

    Raises:
        ValueError: a covariance is singular (constant or linearly dependent components).
    """
    centred = x - x.mean(dim=-2, keepdim=True)
    factor, failed = torch.linalg.cholesky_ex(centred.mT @ centred)  # [L, r, r]
    if bool(failed.any()):
        rows = failed.nonzero().flatten().tolist()
        raise ValueError(
            f"the components of layers {rows} (counted along the first axis) are constant or "
            "linearly dependent, so they have no finite information; ask for fewer components "
            "or leave those layers out"
        )
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
