"""The r principal components of one layer, never by a d x d decomposition of a wide layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops.products import times_rows

BLOCK = 16  # vectors per product: one full register row, so skinny products run near full speed


def depth(r: int) -> int:
    """Blocks of the Krylov space for r components: three times as many vectors, at least three."""
    return max(3, -(-3 * r // BLOCK))


def components(fit: Tensor, mean: Tensor, r: int, name: str) -> Tensor:
    """Principal axes ``[r, d]`` (orthonormal rows, the largest first) of centred rows ``fit``.

    A narrow layer, or one with few rows, is solved exactly on its smaller side. Else the axes come
    from a randomised block Krylov space (Musco and Musco 2015), which every product with the rows
    enlarges: nearer to the exact axes than subspace iteration of the same cost. Whatever it misses
    costs a little information and adds no bias: the estimate holds for the components found.

    Args:
        fit: ``[m, d]``, column means zero.
        mean: ``[d]``, what was taken away: variation below its rounding is none.
        name: of the layer, for the error.

    Raises:
        ValueError: the rows vary in fewer than r directions.
    """
    rows, width = fit.shape
    few = 2 * BLOCK * depth(r)
    if rows <= width and rows <= few:
        gram, side = fit.double() @ fit.double().mT, fit
    elif width <= few:
        gram, side = fit.double().mT @ fit.double(), None
    else:
        side = _krylov(fit, depth(r))  # [BLOCK depth, d]
        gram = side.double() @ side.double().mT
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values[-r:].flip(0), vectors[:, -r:].flip(1)
    eps = torch.finfo(fit.dtype).eps
    none = max(eps**2 * rows * float(values[0]), (2 * eps) ** 2 * rows * float(mean @ mean))
    varying = int((values > none).sum())
    if varying < r:
        raise ValueError(
            f"{name} is constant or varies in only {varying} directions, fewer than the {r} "
            "components asked for; ask for fewer components or leave the layer out"
        )
    if side is None:
        return vectors.mT.to(fit.dtype)
    return times_rows((vectors / values.sqrt()).mT.to(fit.dtype), side.mT)


def _krylov(fit: Tensor, blocks: int) -> Tensor:
    """``Q^T fit`` for an orthonormal basis Q of the space of ``fit g, (fit fit^T) fit g, ...``."""
    rows, width = fit.shape
    generator = torch.Generator().manual_seed(0)
    image = times_rows(torch.randn(BLOCK, rows, generator=generator).to(fit), fit.mT)
    basis, images = fit.new_empty(blocks * BLOCK, rows), fit.new_empty(blocks * BLOCK, width)
    for first in range(0, blocks * BLOCK, BLOCK):
        block = slice(first, first + BLOCK)
        new, before = times_rows(fit, image).mT, basis[:first]
        for _ in range(2):  # once leaves what rounding put back
            new -= (new @ before.mT) @ before
        basis[block] = torch.linalg.qr(new.mT).Q.mT
        image = times_rows(basis[block], fit.mT)
        images[block] = image
    return images


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their column means taken away, in place, and those means."""
    mean = rows.mean(dim=0)
    return rows.sub_(mean), mean
