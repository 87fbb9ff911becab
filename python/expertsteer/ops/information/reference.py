"""Mutual information in plain torch: the definitions that faster backends are tested against."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor


def gaussian_information(x: Tensor, y: Tensor) -> Tensor:
    """Plug-in mutual information of jointly Gaussian samples, every pair of layers at once.

    ``I = -1/2 sum_i log(1 - s_i^2)`` with s the singular values of the correlation R of the
    whitened samples. Where one layer determines a component of the other the information is
    infinite; such components count at the resolution of the dtype (18 nats each in float64).

    Args:
        x: ``[L_x, n, r_x]`` and y: ``[L_y, n, r_y]``, paired rows, non-singular covariances.

    Returns:
        ``[L_x, L_y]`` in nats, biased upwards (see ``pairing.gaussian.gaussian_bias``).
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


def on_a_grid(codes: Tensor) -> Tensor:
    """Codes ``[L, n, r]`` as float32 of 24 significant bits at one scale per layer.

    Whole multiples of a power of two, at most 2^23 of them: the difference of any two is exact in
    single precision, so distances, their order and every count are those of double precision.
    """
    largest = codes.abs().amax(dim=(1, 2), keepdim=True).double().clamp(min=1e-300)
    step = torch.exp2(torch.ceil(torch.log2(largest)) - 23)
    return ((codes.double() / step).round() * step).float()


def max_norm_distances(codes: Tensor, rows: range) -> Tensor:
    """Largest coordinate difference from some points to all: ``[L, n, r]`` -> ``[L, rows, n]``.

    Infinite from a point to itself, which is no neighbour of its own.
    """
    some = codes[:, rows.start : rows.stop]
    distances = (some[:, :, None, 0] - codes[:, None, :, 0]).abs_()
    for c in range(1, codes.shape[2]):
        difference = (some[:, :, None, c] - codes[:, None, :, c]).abs_()
        torch.maximum(distances, difference, out=distances)
    distances.diagonal(rows.start, dim1=1, dim2=2).fill_(math.inf)
    return distances


def ksg_counts(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[Tensor, Tensor]:
    """Neighbour counts in both marginals for every pair of layers (Kraskov et al. 2004).

    The joint distance of two points is the larger of their distances in x and in y; e is the one
    to the k-th neighbour. Variant 1 counts the points strictly nearer than e in x and in y.
    Variant 2 takes the rectangle that holds the k neighbours, and with them every point tied with
    the k-th, and counts the points within its side in x and in y, the boundary included.

    Args:
        x: ``[L_x, rows, n]`` and y: ``[L_y, rows, n]``, distances, infinite to oneself.

    Returns:
        ``n_x`` and ``n_y``, both ``[L_x, L_y, rows]`` int32.
    """
    n_x, n_y = [], []
    for layer in x:
        joint = torch.maximum(layer, y)  # [L_y, rows, n]
        nearest = joint.kthvalue(k, dim=-1, keepdim=True).values
        if variant == 1:
            n_x.append((layer < nearest).sum(dim=-1))
            n_y.append((y < nearest).sum(dim=-1))
        else:
            neighbour = joint <= nearest
            side_x = layer.where(neighbour, -math.inf).amax(dim=-1, keepdim=True)
            side_y = y.where(neighbour, -math.inf).amax(dim=-1, keepdim=True)
            n_x.append((layer <= side_x).sum(dim=-1))
            n_y.append((y <= side_y).sum(dim=-1))
    return torch.stack(n_x).int(), torch.stack(n_y).int()


def digamma_sums(n_x: Tensor, n_y: Tensor, n: int, variant: int) -> Tensor:
    """Per pair, the sum over rows that `ksg_information` takes: ``[L_x, L_y]`` float64.

    ``psi(n_x + 1) + psi(n_y + 1)`` for variant 1, ``psi(n_x) + psi(n_y)`` for variant 2.
    """
    shift = 2 - variant
    table = torch.from_numpy(digamma(np.arange(shift, n + 2, dtype=np.float64).clip(min=1)))
    table = table.to(n_x.device)
    return sum(table.index_select(0, m.flatten()).view(m.shape).sum(dim=-1) for m in (n_x, n_y))


def ksg_information(sums: Tensor, n: int, k: int, variant: int) -> Tensor:
    """``psi(k) + psi(n) - sums / n``, less ``1 / k`` for variant 2 (equations 8 and 9), nats."""
    constant = float(digamma(k) + digamma(n)) - (1 / k if variant == 2 else 0.0)
    return constant - sums / n


def squared_gaussian_gram(states: Tensor) -> Tensor:
    """Entry-wise square of a layer's Gaussian Gram matrix, ``[N, d]`` -> ``[N, N]`` float32.

    ``K_ij^2 = exp(-|h_i - h_j|^2 / s^2)`` for ``K_ij = exp(-|h_i - h_j|^2 / 2 s^2)``, s the median
    distance between two examples.

    Raises:
        ValueError: the median distance is zero.
    """
    centred = states - states.mean(dim=0)
    norms = centred.square().sum(dim=1)
    squared = (norms[:, None] + norms - 2 * (centred @ centred.mT)).clamp_(min=0).fill_diagonal_(0)
    above = torch.triu_indices(len(states), len(states), 1, device=states.device)
    median = squared[above[0], above[1]].median()
    if not float(median) > torch.finfo(states.dtype).eps * float(states.mean(dim=0).square().sum()):
        raise ValueError(
            "is constant for more than half of its pairs of examples, so the median distance, "
            "which sets the bandwidth, is zero; leave the layer out or drop duplicate examples"
        )
    return squared.div_(-median).exp_().float()


def renyi2_information(x: Tensor, y: Tensor) -> Tensor:
    """Matrix-based Renyi information of order 2 of every pair of layers, in nats.

    With A = K / tr K and ``S(A) = -log tr(A^2)``: ``I = S(A) + S(B) - S(A o B / tr(A o B))``
    (Sanchez Giraldo, Rao and Principe 2015). Since ``tr(A^2)`` is the sum of squared entries and
    the kernels are 1 on the diagonal, ``I = log(n^2 sum K^2 L^2 / (sum K^2 sum L^2))``: one product
    of the flattened squares for all pairs.

    Args:
        x: ``[L_x, n, n]`` and y: ``[L_y, n, n]``, as `squared_gaussian_gram` gives them.

    Returns:
        ``[L_x, L_y]`` float64; between 0 and log n for one layer with itself.
    """
    n = x.shape[1]
    joint = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64, device=x.device)
    total_x, total_y = joint.new_zeros(x.shape[0]), joint.new_zeros(y.shape[0])
    rows = max(1, 2**17 // n)  # short sums in single precision, long ones in double
    for start in range(0, n, rows):
        tile = slice(start, start + rows)
        left, right = x[:, tile].flatten(1), y[:, tile].flatten(1)
        joint += (left @ right.mT).double()
        total_x += left.sum(dim=1, dtype=torch.float64)
        total_y += right.sum(dim=1, dtype=torch.float64)
    return torch.log(joint * n**2 / (total_x[:, None] * total_y))
