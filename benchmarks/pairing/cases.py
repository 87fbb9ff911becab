"""What the benchmarks of information run: states, our calls, and what people do per pair today."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma

from expertsteer import ops
from expertsteer.ops.information.reference import on_a_grid
from expertsteer.pairing import gaussian as _gaussian
from expertsteer.pairing import ksg as _ksg
from expertsteer.pairing.layers import Layers
from expertsteer.pairing.projection import BLOCK, Wanted, depth, gram_serves, stacked

COMPONENTS = 32


def states(layers, n, d, seed=0):
    """``[layers, n, d]`` float32 twice: 32 directions each model shares with the other, more and
    more noise in deeper layers, and a falling spectrum of nuisance."""
    generator = torch.Generator().manual_seed(seed)
    cause = torch.randn(n, COMPONENTS, generator=generator)
    sides = []
    for _ in range(2):
        side = torch.empty(layers, n, d)
        for layer in side:
            noise = 0.5 + torch.rand((), generator=generator)
            core = cause + noise * torch.randn(n, COMPONENTS, generator=generator)
            axes = torch.linalg.qr(torch.randn(d, COMPONENTS, generator=generator)).Q
            layer.copy_(0.1 * torch.randn(n, d, generator=generator) + core @ axes.mT)
        sides.append(side)
    return sides


def halves_of(n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).tensor_split(2)


def project(side, r=COMPONENTS):
    """Ours: the codes of every layer on both halves, ``[half] -> [L, n / 2, r]``."""
    halves, wanted = halves_of(side.shape[1]), Wanted(r, asked=True)
    return [stacked(codes, r) for codes in _gaussian._codes(Layers("x", side), halves, wanted)]


def project_sklearn(side, r=COMPONENTS):
    """scikit-learn's randomised PCA per layer, fitted on each half and applied to the other."""
    from sklearn.decomposition import PCA

    halves = [half.numpy() for half in halves_of(side.shape[1])]
    coded = [[], []]
    for layer in side.numpy():
        for held, fitted in ((0, 1), (1, 0)):
            pca = PCA(r, svd_solver="randomized", random_state=0).fit(layer[halves[fitted]])
            coded[held].append(pca.transform(layer[halves[held]]))
    return [torch.from_numpy(np.stack(codes)).double() for codes in coded]


def projection_operations(layers, n, d, r=COMPONENTS):
    """Floating-point operations of the large products in `project`, none of them twice.

    Per half: a symmetric product of its rows, or the narrow ones of the Krylov space, and the
    turn of that space; the axes; the codes of the other half.
    """
    rows, vectors = n // 2, BLOCK * depth(r)
    if gram_serves(rows, d, r):
        half = d * rows * rows + 2 * d * r * (rows + r)  # half of a symmetric product is enough
    else:
        half = 2 * d * (rows * BLOCK * (2 * depth(r) + 1) + vectors * r)
    return 2 * layers * (half + 2 * d * r * rows)


def pairs(x, y):
    """Ours: all pairs of both halves."""
    return sum(ops.gaussian_information(a, b) for a, b in zip(x, y)) / 2


def pairs_slogdet(x, y):
    """The same, one pair after the other."""
    return slogdet(x, y) / 2


def slogdet(x, y):
    """The sum over halves: three log-determinants of covariances per pair, in double precision."""
    total = torch.zeros(len(x[0]), len(y[0]), dtype=torch.float64)
    for half_x, half_y in zip(x, y):
        r = half_x.shape[2]
        for a, code_x in enumerate(half_x):
            for b, code_y in enumerate(half_y):
                covariance = torch.cov(torch.cat([code_x, code_y], dim=1).mT)
                blocks = covariance[:r, :r], covariance[r:, r:], covariance
                in_x, in_y, joint = (torch.linalg.slogdet(m).logabsdet for m in blocks)
                total[a, b] += 0.5 * (in_x + in_y - joint)
    return total


def ksg_codes(side, r):
    return on_a_grid(stacked(_ksg._codes(Layers("x", side), Wanted(r, asked=True)), r))


def ksg_tree(x, y, k=3):
    """One pair by k-d trees: the joint k-th neighbour, then open balls in either marginal."""
    x, y = x.double().numpy(), y.double().numpy()
    radius = cKDTree(joint := np.hstack([x, y])).query(joint, k + 1, p=np.inf)[0][:, -1]
    inside, total = np.nextafter(radius, 0), 0.0
    for side in (x, y):
        counts = cKDTree(side).query_ball_point(side, inside, p=np.inf, return_length=True)
        total += digamma(counts).mean()
    return digamma(k) + digamma(len(x)) - total


def ksg_sklearn(x, y):
    """scikit-learn's estimator, which takes one component per layer: ``[L_x, L_y]``."""
    from sklearn.feature_selection import mutual_info_regression

    left, right = x[:, :, 0].mT.double().numpy(), y[:, :, 0].double().numpy()
    return torch.from_numpy(
        np.stack([mutual_info_regression(left, target, n_neighbors=3) for target in right], axis=1)
    )


def planted_codes(n, r, nats, layers, seed=0):
    """Jointly Gaussian codes on the grid, layer i of either side with ``nats`` of information."""
    generator = torch.Generator().manual_seed(seed)
    rho = float(np.sqrt(-np.expm1(-2 * nats / r)))
    x = torch.randn(layers, n, r, generator=generator)
    y = rho * x + (1 - rho**2) ** 0.5 * torch.randn(layers, n, r, generator=generator)
    return on_a_grid(x), on_a_grid(y)
