"""Gaussian information of all layer pairs: one product, then log-determinants in one batch.

``I = -1/2 log det(1 - R R^T)`` for the correlation R of a pair's whitened codes. The product of all
stacked codes is taken in single precision; pairs whose log-determinant that cannot carry (one
layer nearly determines a component of the other) are done again in double, and those on the edge
of double by the singular values that define the operation (`reference.gaussian_information`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..products import times_transposed
from . import native
from .reference import whiten

# Smallest pivot, 1 - s^2 or more, whose logarithm a dtype resolves well: a relative error of
# about 1e-5 in single and 1e-8 in double precision.
_SMALLEST_PIVOT = {torch.float32: 0.03, torch.float64: 1e-6}


def gaussian_information(x: Tensor, y: Tensor) -> Tensor:
    """`reference.gaussian_information`, float64 whatever the codes are."""
    if x.shape[2] > y.shape[2]:  # the r x r side is the smaller one
        return gaussian_information(y, x).mT
    left, right = _whitened(x, y)
    (rows, r, n), (columns, s, _) = left.shape, right.shape
    product = left.reshape(-1, n).float() @ right.reshape(-1, n).float().mT
    correlation = product.view(rows, r, columns, s).transpose(1, 2)  # [rows, columns, r, s]
    nats, weak = _log_determinants(correlation)
    return _again_in_double(nats, weak, left, right) if bool(weak.any()) else nats


def gaussian_information_native(x: Tensor, y: Tensor) -> Tensor:
    """As `gaussian_information`, the whitening and the log-determinants by the extension."""
    if x.shape[2] > y.shape[2]:
        return gaussian_information_native(y, x).mT
    left, right = (native.whiten(codes.double()) for codes in (x, y))
    if left is None or right is None:
        return gaussian_information(x, y)  # which names the layers
    n = left.shape[2]
    product = times_transposed(right.view(-1, n), left.view(-1, n))  # [L_y s, L_x r]
    nats, smallest = native.log_determinants(product, len(left), len(right))
    weak = ~(smallest >= _SMALLEST_PIVOT[torch.float32])
    return _again_in_double(nats, weak, *_whitened(x, y)) if bool(weak.any()) else nats


def _whitened(*sides: Tensor) -> list[Tensor]:
    return [whiten(codes.double()).mT for codes in sides]  # [L, r, n] float64


def _again_in_double(nats: Tensor, weak: Tensor, left: Tensor, right: Tensor) -> Tensor:
    for row in weak.any(dim=1).nonzero().flatten().tolist():
        again = weak[row].nonzero().flatten()
        correlation = left[row] @ right[again].mT  # [pairs, r, s] float64
        exact, edge = _log_determinants(correlation)
        if bool(edge.any()):
            exact[edge] = _from_singular_values(correlation[edge])
        nats[row, again] = exact
    return nats


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
