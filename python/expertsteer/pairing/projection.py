"""The r principal components of one layer, never by a d x d decomposition of a wide layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.products import gram, times_rows
from ..support.numbers import percent
from ..support.tensors import normal_draws
from .copies import copies

BLOCK = 16  # vectors per product: one full register row, so skinny products run near full speed
STEEP = 256  # roundings of the largest variance that the smallest one kept must exceed in a Gram


def depth(r: int) -> int:
    """Blocks of the Krylov space for r components: three times as many vectors, at least three."""
    return max(3, -(-3 * r // BLOCK))


def gram_serves(rows: int, width: int, r: int) -> bool:
    """Whether one large product ``fit fit^T`` costs less than the narrow ones it replaces.

    A symmetric product of twice their operations takes about as long as they do.
    """
    return rows <= min(width, 4 * BLOCK * (2 * depth(r) + 1))


class Wanted:
    """How many components every layer is to have: what was asked for, or what they all have.

    Attributes:
        count: so far; it only falls, and only where nobody asked for a number.
        fewer: what to tell the user where it fell, else ``None``.
    """

    def __init__(self, count: int, asked: bool):
        self.count, self.asked, self.fewer = count, asked, None

    def take(self, varying: int, states: Tensor, name: str) -> int:
        """The components of a layer whose rows vary in so many directions.

        Raises:
            ValueError: in none, or in fewer than were asked for.
        """
        if varying >= self.count:
            return self.count
        share, alike = copies(states)
        same = (
            f", and only {percent(share, 0)} of its rows differ ({alike} are copies)"
            if alike
            else ""
        )
        if not varying:
            raise ValueError(
                f"{name} is constant: the states of all examples coincide; give different texts, "
                "capture at a position where they differ, or leave the layer out"
            )
        if self.asked:
            raise ValueError(
                f"{name} varies in only {varying} directions, fewer than the {self.count} "
                f"components asked for{same}; ask for fewer components, remove duplicates, or "
                "leave the layer out"
            )
        self.count = varying
        self.fewer = f"{name} varies in only {varying} directions{same}"
        return varying


def components(fit: Tensor, mean: Tensor, wanted: Wanted, states: Tensor, name: str) -> Tensor:
    """Principal axes ``[r, d]`` (orthonormal rows, the largest first) of centred rows ``fit``.

    A narrow layer, or one with very few rows, is solved exactly on its smaller side. Else the axes
    come from a randomised block Krylov space (Musco and Musco 2015): nearer to the exact axes than
    subspace iteration of the same cost. Whatever it misses costs a little information and adds no
    bias: the estimate holds for the components found. With up to some hundred rows the space is
    built from their Gram matrix, which needs the rows no more than three times; with more of them,
    or where rounding in that matrix would hide the smaller components, from the rows themselves.

    Args:
        fit: ``[m, d]``, column means zero.
        mean: ``[d]``, what was taken away: variation below its rounding is none.
        wanted: how many, r; lowered where the rows vary in fewer directions and may.
        states, name: all rows of the layer and what it is called, for the message.

    Raises:
        ValueError: see `Wanted.take`.
    """
    (rows, width), r = fit.shape, wanted.count
    few = 2 * BLOCK * depth(r)
    if rows <= width and rows <= few:
        small, side = fit.double() @ fit.double().mT, fit
    elif width <= few:
        small, side = fit.double().mT @ fit.double(), None
    else:
        side = _through_gram(fit, r) if gram_serves(rows, width, r) else None
        side = _krylov_images(fit, depth(r)) if side is None else side
        small = side.double() @ side.double().mT
    values, vectors = torch.linalg.eigh(small)  # ascending
    values, vectors = values[-r:].flip(0), vectors[:, -r:].flip(1)
    eps = torch.finfo(fit.dtype).eps
    none = max(eps**2 * rows * float(values[0]), (2 * eps) ** 2 * rows * float(mean @ mean))
    varying = int((values > none).sum())
    kept = wanted.take(varying, states, name)
    values, vectors = values[:kept], vectors[:, :kept]
    if side is None:
        return vectors.mT.to(fit.dtype)
    return times_rows((vectors / values.sqrt()).mT.to(fit.dtype), side.mT)


def _through_gram(fit: Tensor, r: int) -> Tensor | None:
    """``V^T fit [r, d]`` for the r leading left singular vectors V that the Krylov space holds.

    None where they are too unequal for a Gram matrix, which squares their ratio.
    """
    square = gram(fit)
    basis = _krylov(lambda q: times_rows(square, q).mT, fit, depth(r))
    values, vectors = torch.linalg.eigh(times_rows(basis, times_rows(basis, square)))
    if not values[-r] > STEEP * torch.finfo(fit.dtype).eps * values[-1]:
        return None
    return times_rows(vectors[:, -r:].mT @ basis, fit.mT)


def _krylov_images(fit: Tensor, blocks: int) -> Tensor:
    """``Q^T fit [BLOCK blocks, d]`` for a basis Q of the Krylov space, without a Gram matrix."""
    images: list[Tensor] = []

    def step(q: Tensor) -> Tensor:
        images.append(times_rows(q, fit.mT))
        return times_rows(fit, images[-1]).mT

    basis = _krylov(step, fit, blocks)
    images.append(times_rows(basis[-BLOCK:], fit.mT))
    return torch.cat(images[1:])  # the first is the random start's


def _krylov(step: Callable[[Tensor], Tensor], fit: Tensor, blocks: int) -> Tensor:
    """Orthonormal rows ``[BLOCK blocks, m]`` that span ``G g, G^2 g, ...``.

    Args:
        step: ``q [BLOCK, m]`` to ``q G`` for ``G = fit fit^T``.
    """
    block = normal_draws(BLOCK, len(fit), seed=0).to(fit)
    basis = fit.new_empty(blocks * BLOCK, len(fit))
    for first in range(0, blocks * BLOCK, BLOCK):
        new, before = step(block), basis[:first]
        for _ in range(2 if first else 0):  # once leaves what rounding put back
            new = torch.addmm(new, new @ before.mT, before, alpha=-1)
        block = basis[first : first + BLOCK] = torch.linalg.qr(new.mT).Q.mT
    return basis


def stacked(codes: list[Tensor], r: int) -> Tensor:
    """The first r components of every layer, ``[L, rows, r]``."""
    return torch.stack([code[:, :r] for code in codes])


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their column means taken away, in place, and those means."""
    mean = rows.mean(dim=0)
    return rows.sub_(mean), mean
