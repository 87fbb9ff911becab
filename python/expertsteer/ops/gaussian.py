"""Gaussian information of all layer pairs: one product, then log-determinants in one batch.

``I = -1/2 log det(1 - R R^T)`` for the correlation R of a pair's whitened codes. The product of all
stacked codes is taken in single precision; pairs whose log-determinant that cannot carry (one
layer nearly determines a component of the other) are done again in double, and those on the edge
of double by the singular values that define the operation (`reference.gaussian_information`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import native
from .products import times_transposed
from .reference import whiten

# Smallest pivot, 1 - s^2 or more, whose logarithm a dtype resolves well: a relative error of
# about 1e-5 in single and 1e-8 in double precision.
_SMALLEST_PIVOT = {torch.float32: 0.03, torch.float64: 1e-6}


def gaussian_information(x: Tensor, y: Tensor) -> Tensor:
    """`reference.gaussian_information`, float64 whatever the codes are."""
    return _whole(x, y, _in_torch)


def gaussian_information_native(x: Tensor, y: Tensor) -> Tensor:
    """As `gaussian_information`, the log-determinants by the extension, on a CPU."""
    return _whole(x, y, _in_the_extension)


def _whole(x: Tensor, y: Tensor, single: Callable) -> Tensor:
    left, right = (whiten(codes.double()).mT for codes in (x, y))  # [L, r, n]
    if left.shape[1] > right.shape[1]:  # the r x r side is the smaller one
        return _all_pairs(right, left, single).mT
    return _all_pairs(left, right, single)


def _all_pairs(left: Tensor, right: Tensor, single: Callable) -> Tensor:
    nats, weak = single(left, right)
    for row in weak.any(dim=1).nonzero().flatten().tolist():
        again = weak[row].nonzero().flatten()
        correlation = left[row] @ right[again].mT  # [pairs, r, s] float64
        exact, edge = _log_determinants(correlation)
        if bool(edge.any()):
            exact[edge] = _from_singular_values(correlation[edge])
        nats[row, again] = exact
    return nats


def _in_torch(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Information in single precision ``[L_x, L_y]``, and where that does not resolve it."""
    (rows, r, n), (columns, s, _) = left.shape, right.shape
    product = left.reshape(-1, n).float() @ right.reshape(-1, n).float().mT
    correlation = product.view(rows, r, columns, s).transpose(1, 2)  # [rows, columns, r, s]
    return _log_determinants(correlation)


def _in_the_extension(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    (rows, r, n), (columns, s, _) = left.shape, right.shape
    stacked = (side.reshape(-1, n).float().contiguous() for side in (right, left))
    product = times_transposed(*stacked)  # [L_y s, L_x r]
    nats, smallest = native.log_determinants(product, rows, columns, r, s)
    return nats, ~(smallest >= _SMALLEST_PIVOT[torch.float32])


def _log_determinants(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Information per matrix, float64, and which of them the dtype cannot resolve."""
    one = torch.eye(correlation.shape[-2], dtype=correlation.dtype, device=correlation.device)
    factor, failed = torch.linalg.cholesky_ex(one - correlation @ correlation.mT)
    pivots = factor.diagonal(dim1=-2, dim2=-1)  # square roots of the pivots
    smallest = _SMALLEST_PIVOT[correlation.dtype] ** 0.5
    weak = (failed > 0) | ~(pivots >= smallest).all(dim=-1)
    return -pivots.double().log().sum(dim=-1), weak


def _from_singular_values(correlation: Tensor) -> Tensor:
    singular = torch.linalg.svdvals(correlation)
    singular = singular.clamp(max=1 - torch.finfo(correlation.dtype).eps)
    return -0.5 * torch.log1p(-singular.square()).sum(dim=-1)
