"""Reduced-rank ridge regression in closed form, its rank chosen on rows it was not fitted on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .maps import AffineMap
from .subspace import principal_axes

FOLDS = 5
# A further dimension has to explain so much more of the held-out variance, beyond rounding.
LEAST_GAIN = 1e-4


class Standardised(NamedTuple):
    """Columns less their mean over their deviation, so that none is heard for its size alone."""

    values: Tensor  # [N, d] float64
    mean: Tensor  # [d] float64
    deviation: Tensor  # [d] float64; 1 where a column does not vary


def standardised(states: Tensor) -> Standardised:
    states = states.double()
    mean = states.mean(dim=0)
    centred = states - mean
    deviation = centred.square().mean(dim=0).sqrt()
    # What the mean's own rounding leaves of a constant column is no deviation.
    varies = deviation > 64 * torch.finfo(torch.float64).eps * mean.abs()
    deviation = torch.where(varies, deviation, 1.0)
    return Standardised(torch.where(varies, centred, 0.0) / deviation, mean, deviation)


def low_rank(h: Tensor, t: Tensor, reg: float, rank: int) -> AffineMap:
    """The map of at most ``rank`` that ``align`` with ``method="low_rank"`` fits.

    Args:
        h, t: expert states ``[N, d_E]`` and target states ``[N, d_T]``.
    """
    x, y = standardised(h), standardised(t)
    weight, axes = _ridge_and_axes(x.values, y.values, reg, rank)
    weight = (weight @ axes) @ axes.mT
    weight = weight / x.deviation.unsqueeze(1) * y.deviation
    return AffineMap(x.mean.to(h), weight.to(h), y.mean.to(h))


def chosen_rank(
    h: Tensor, t: Tensor, reg: float, pairs: Tensor | None, seed: int
) -> tuple[int, Tensor]:
    """The rank by cross-validation, and what the map of that rank says of rows it has not seen.

    The smallest rank whose explained variance of the held-out rows falls short of the best one's
    by no more than one standard error of that difference over the folds. One fit per fold serves
    every rank: its axes are orthonormal, so that their errors add up.

    Args:
        h, t: ``[N, d_E]`` and ``[N, d_T]``.
        pairs: ``[N]``, rows of one number (but -1) share a fold; or ``None``.

    Returns:
        The rank, at least 1, and ``[N, d_T]`` in the type of ``h``.

    Raises:
        ValueError: all rows of one pair, which leave nothing to hold out.
    """
    fold = _folds(len(h), pairs, seed).to(h.device)
    most = min(h.shape[1], t.shape[1], len(h))
    gains, parts = [], []
    for held in (fold == i for i in range(int(fold.max()) + 1)):
        x, y = standardised(h[~held]), standardised(t[~held])
        weight, axes = _ridge_and_axes(x.values, y.values, reg, most)
        codes = ((h[held].double() - x.mean) / x.deviation) @ weight @ axes  # [held, r]
        goals = (t[held].double() - y.mean) / y.deviation
        seen = goals @ axes
        gain = (2 * seen * codes - codes.square()).sum(dim=0).cumsum(dim=0)
        # Ranks beyond what the fold's rows span add nothing more.
        gain = torch.cat([gain, gain[-1:].expand(most - len(gain))])
        gains.append(gain / goals.square().sum().clamp(min=torch.finfo(gain.dtype).tiny))
        parts.append((held, codes, axes, y))
    shares = torch.stack(gains)  # [folds, ranks]
    best = int(shares.mean(dim=0).argmax())
    short = shares[:, best : best + 1] - shares
    error = short.std(dim=0) / len(shares) ** 0.5
    enough = short.mean(dim=0) <= error.clamp(min=LEAST_GAIN)
    rank = int(enough.nonzero()[0]) + 1
    unseen = t.new_empty(t.shape, dtype=h.dtype)
    for held, codes, axes, y in parts:
        told = codes[:, :rank] @ axes[:, :rank].mT
        unseen[held] = (told * y.deviation + y.mean).to(h.dtype)
    return rank, unseen


def _ridge_and_axes(x: Tensor, y: Tensor, reg: float, most: int) -> tuple[Tensor, Tensor]:
    """Ridge weights ``B [d_E, d_T]`` and the axes ``V [d_T, r]`` that its rank is cut along.

    With the penalty p, ``B V V^T`` is the minimiser of ``||Y - X A||^2 + p ||A||^2`` over the
    matrices A of rank r for V the top eigenvectors of ``B^T (X^T X + p I) B``: reduced-rank
    regression (Izenman 1975) of the rows ``[X; sqrt(p) I]`` on ``[Y; 0]``. Through the
    eigenvectors of the smaller of ``X X^T`` and ``X^T X``.
    """
    rows, width = x.shape
    penalty = reg * rows  # N: the squared length of a standardised column
    if rows < width:
        values, vectors = torch.linalg.eigh(x @ x.mT)
        values, seen = values.clamp(min=0), vectors.mT @ y
        weight = x.mT @ (vectors @ (seen / (values + penalty).unsqueeze(1)))
        fitted = seen * (values / (values + penalty)).sqrt().unsqueeze(1)
    else:
        values, vectors = torch.linalg.eigh(x.mT @ x)
        values, seen = values.clamp(min=0), vectors.mT @ (x.mT @ y)
        weight = vectors @ (seen / (values + penalty).unsqueeze(1))
        fitted = seen / (values + penalty).sqrt().unsqueeze(1)
    return weight, principal_axes(fitted, most)


def _folds(rows: int, pairs: Tensor | None, seed: int) -> Tensor:
    """The fold ``[rows]`` of every row, those of one pair in one fold."""
    unit = torch.arange(rows, dtype=torch.int64, device="cpu")
    if pairs is not None:
        pairs = pairs.cpu()
        unit = torch.where(pairs < 0, pairs.max() + 1 + unit, pairs)
    _, unit = unit.unique(return_inverse=True)
    units = int(unit.max()) + 1
    if units < 2:
        raise ValueError(
            "rank: choosing it needs rows of at least 2 pairs, came 1 pair; give rank, or extend "
            "the contrast set"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(units, generator=generator, device="cpu")[unit] % min(FOLDS, units)
