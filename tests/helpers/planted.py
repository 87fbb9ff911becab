"""Layers whose mutual information is known exactly."""

import math

import torch


def correlation_of(nats, r):
    """The correlation of each of r coordinate pairs that hold ``nats`` together."""
    return math.sqrt(-math.expm1(-2 * nats / r))


def gaussian_pair(n, r, nats, d_x=None, d_y=None, seed=0):
    """Rows of two jointly Gaussian layers with exactly ``nats`` of information.

    r coordinates are correlated one by one; isometries then hide them in d dimensions, beside
    independent nuisance of lower variance, which changes no information.
    """
    generator = torch.Generator().manual_seed(seed)
    correlation = correlation_of(nats, r)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = noise(n, r)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise(n, r)
    hidden = []
    for core, d in ((x, d_x or r), (y, d_y or r)):
        padded = torch.cat([core, 0.1 * noise(n, d - r)], dim=1)
        hidden.append(padded @ torch.linalg.qr(noise(d, d)).Q)
    return hidden[0][None], hidden[1][None]


def hidden_in_thousands(n, r, nats, draws, d=4096, seed=0):
    """``draws`` independent pairs ``[draws, n, d]`` float32; layer i of x and of y hold ``nats``.

    r coordinates are carried isometrically into d dimensions; nuisance fills the other d - r. It
    is the weaker the less of a coordinate its partner leaves open, so that a subspace found from
    n / 2 rows, which it tilts, still holds the information.
    """
    generator = torch.Generator().manual_seed(seed)
    correlation = correlation_of(nats, r)
    rest = math.exp(-nats / r)  # sqrt(1 - correlation^2)
    sides = torch.empty(2, draws, n, d)
    for draw in range(draws):
        x = torch.randn(n, r, generator=generator, dtype=torch.float64)
        noise = torch.randn(n, r, generator=generator, dtype=torch.float64)
        for side, core in enumerate((x, correlation * x + rest * noise)):
            axes = torch.linalg.qr(torch.randn(d, r, generator=generator)).Q
            nuisance = torch.randn(n, d, generator=generator).mul_(0.1 * rest)
            nuisance -= (nuisance @ axes) @ axes.mT
            sides[side, draw] = nuisance + core.float() @ axes.mT
    return sides
