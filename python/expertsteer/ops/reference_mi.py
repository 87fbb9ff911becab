"""Mutual information in plain torch: the definitions that faster backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import whiten


def shrunk_gaussian_information(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian information of every pair of layers with correlations shrunk towards zero.

    ``I = -1/2 log det(1 - (1 - s)^2 R R^T)`` with R the correlation of the whitened codes and
    ``s = min(1, sum (1 - R_ij^2)^2 / (n - 1) / sum R_ij^2)``, the share of sampling variance in
    the squared correlations (Schaefer and Strimmer 2005, target: no correlation). Defined for any
    n above either number of components; no bias correction goes with it.

    Args:
        x: ``[L_x, n, r_x]`` and y: ``[L_y, n, r_y]``, paired rows, non-singular covariances.

    Returns:
        information in nats and s, both ``[L_x, L_y]`` float64.
    """
    left, right = whiten(x.double()), whiten(y.double())
    correlation = torch.einsum("anr,bns->abrs", left, right)  # [L_x, L_y, r_x, r_y]
    squared = correlation.square()
    noise = (1 - squared).square().sum(dim=(-2, -1)) / (x.shape[1] - 1)
    shrinkage = (noise / squared.sum(dim=(-2, -1)).clamp(min=1e-300)).clamp(max=1)
    singular = torch.linalg.svdvals(correlation * (1 - shrinkage)[..., None, None])
    singular = singular.clamp(max=1 - torch.finfo(singular.dtype).eps)
    return -0.5 * torch.log1p(-singular.square()).sum(dim=-1), shrinkage
