"""The top eigenvector of an RFM's metric from its n x n matrices alone.

Every metric M_t lies in the row space of X, so its eigenvectors are ``X^T c``, and

    M_{t+1} X^T c = X^T (B_0 P_0 B_1 P_1 ... B_t P_t c),      B_t = sum_c T_c^T T_c,

a chain of n x n matrix-vector products. Lanczos with full reorthogonalisation in the inner product
``<a, b> = a^T P_0 b`` (that of X^T a and X^T b) finds the largest eigenvalue; the d-dimensional
vector is formed once, at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .ops import reference

if TYPE_CHECKING:
    from ._rfm_parts import Step

CHECK_EVERY = 4


def top_direction(points: Tensor, steps: list[Step], depth: Tensor, centre: bool) -> Tensor:
    """Unit top eigenvectors ``[B, D]`` of ``M_depth``, one depth (>= 1) per problem."""
    coefficients = _lanczos(steps, depth, centre)
    # The coefficients belong to a Gram matrix of unit scale; the length is taken out here anyway.
    direction = (points.mT @ coefficients.unsqueeze(-1)).squeeze(-1)
    return direction / direction.norm(dim=-1, keepdim=True)


def _apply_metric(steps: list[Step], depth: Tensor, centre: bool, c: Tensor) -> Tensor:
    """``B_0 P_0 ... B_t P_t c`` for ``c [B, n]``, with t = depth - 1 of each problem."""
    c = c.unsqueeze(-1)
    for t in reversed(range(int(depth.max()))):
        step = steps[t]
        # Scale-free, so that large states or labels overflow nowhere: eigenvectors do not notice.
        applied = _outer(step, step.gram @ c / _scale(step.gram), centre)
        c = torch.where((depth > t).view(-1, 1, 1), applied, c)
    return c.squeeze(-1)


def _outer(step: Step, right: Tensor, centre: bool) -> Tensor:
    """``sum_c T_c^T T_c right`` up to a positive factor; ``centre`` takes off the mean gradient."""
    largest = (step.weights @ step.alpha.abs()).amax(dim=(1, 2), keepdim=True)  # [B, 1, 1]
    alpha = step.alpha / torch.where(largest > 0, largest, 1.0)
    rows = reference.gradient_rows(step.weights, alpha, right, centre)
    row_sums = step.weights @ alpha  # [B, n, C]
    total = torch.zeros_like(right)
    for c, row in enumerate(rows):
        # T_c is not symmetric: T_c^T = diag(W alpha_c) - diag(alpha_c) W.
        total += row_sums[..., c, None] * row - alpha[..., c, None] * (step.weights @ row)
    return total


def _scale(gram: Tensor) -> Tensor:
    """The largest diagonal entry of each Gram matrix, ``[B, 1, 1]``."""
    return gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1).view(-1, 1, 1)


def _lanczos(steps: list[Step], depth: Tensor, centre: bool) -> Tensor:
    """Coefficients ``c [B, n]`` of the top eigenvector ``X^T c``."""
    gram = steps[0].gram / _scale(steps[0].gram)
    batch, n, _ = gram.shape
    tolerance = torch.finfo(gram.dtype).eps ** 0.75
    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = start.to(gram).expand(batch, n)
    basis, images = [], []  # c_k, and P_0 c_k
    projected = gram.new_zeros(batch, 0, 0)
    for k in range(n):
        vector, image = _orthonormal(vector, gram, basis, images)
        basis.append(vector)
        images.append(image)
        vector = _apply_metric(steps, depth, centre, vector)
        column = torch.einsum("kbn,bn->bk", torch.stack(images), vector)  # <c_j, A c_k>
        grown = gram.new_zeros(batch, k + 1, k + 1)
        grown[:, :k, :k] = projected
        grown[:, :, k] = column
        grown[:, k, :] = column
        projected = grown
        residual = _residual(vector, gram, basis, column)
        if k % CHECK_EVERY == CHECK_EVERY - 1 or k == n - 1:
            values, ritz = torch.linalg.eigh(projected)
            error = residual * ritz[:, -1, -1].abs()
            if bool((error <= tolerance * values[:, -1].abs()).all()):
                break
        if bool((residual <= torch.finfo(gram.dtype).tiny).all()):
            break
    values, ritz = torch.linalg.eigh(projected)
    return torch.einsum("kbn,bk->bn", torch.stack(basis), ritz[:, :, -1])


def _orthonormal(vector: Tensor, gram: Tensor, basis: list[Tensor], images: list[Tensor]):
    """``vector`` made orthogonal to ``basis`` and of unit length in the P_0 inner product.

    Zero where nothing but rounding is left of it: that problem's Krylov space is exhausted.
    """
    before = torch.einsum("bi,bij,bj->b", vector, gram, vector).clamp(min=0).sqrt()
    for _ in range(2 if basis else 0):  # twice is enough to reach working precision
        overlap = torch.einsum("kbn,bn->kb", torch.stack(images), vector)
        vector = vector - torch.einsum("kb,kbn->bn", overlap, torch.stack(basis))
    image = torch.einsum("bij,bj->bi", gram, vector)
    norm = (vector * image).sum(dim=-1).clamp(min=0).sqrt()
    alive = norm > 100 * torch.finfo(gram.dtype).eps * before
    inverse = torch.where(alive, 1 / norm, 0.0).unsqueeze(-1)
    return vector * inverse, image * inverse


def _residual(vector: Tensor, gram: Tensor, basis: list[Tensor], column: Tensor) -> Tensor:
    """Length of what the basis does not yet hold of ``vector``, ``[B]``."""
    rest = vector - torch.einsum("bk,kbn->bn", column, torch.stack(basis))
    return (rest * torch.einsum("bij,bj->bi", gram, rest)).sum(dim=-1).clamp(min=0).sqrt()
