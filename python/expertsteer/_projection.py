"""The r principal components of one layer, never by a d x d decomposition of a wide layer."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING = 8  # directions carried beside the r wanted ones, so that those converge
POWERS = 2  # applications of X X^T; the components need to be good, not perfect (see `components`)


def components(fit: Tensor, mean: Tensor, r: int, name: str) -> Tensor:
    """Principal axes ``[r, d]`` (orthonormal rows, the largest first) of centred rows ``fit``.

    A narrow layer, or one with few rows, is solved exactly on its smaller side. Else subspace
    iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) finds the axes from a few products
    of ``fit`` with r + 8 vectors. Whatever it misses costs a little information and adds no bias:
    the estimate that follows holds for the components found.

    Args:
        fit: ``[m, d]``, column means zero.
        mean: ``[d]``, what was taken away: variation below its rounding is none.
        name: of the layer, for the error.

    Raises:
        ValueError: the rows vary in fewer than r directions.
    """
    rows, width = fit.shape
    sketch = r + OVERSAMPLING
    if rows <= width and rows <= 4 * sketch:
        gram, side = fit.double() @ fit.double().mT, fit
    elif width <= 4 * sketch:
        gram, side = fit.double().mT @ fit.double(), None
    else:
        side = _range(fit, sketch)  # [s, d]
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
    return (vectors / values.sqrt()).mT.to(fit.dtype) @ side


def _range(fit: Tensor, sketch: int) -> Tensor:
    """``[sketch, d]`` whose rows span the leading right singular vectors of ``fit``."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(fit.shape[0], sketch, generator=generator)
    basis = start.to(fit)
    for _ in range(POWERS):
        # Orthonormal again at every turn: otherwise the largest direction drowns the others.
        basis = torch.linalg.qr(fit @ (basis.mT @ fit).mT).Q
    return basis.mT @ fit


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their column means taken away, in place, and those means."""
    mean = rows.mean(dim=0)
    return rows.sub_(mean), mean
