"""The two factorisations of the auto-encoder, on the smaller side of what they are given."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096  # converted to double precision at a time


def principal_axes(x: Tensor, most: int) -> Tensor:
    """Orthonormal principal axes of centred rows, the largest variance first.

    From the eigenvectors of ``x^T x``, or of ``x x^T`` where there are fewer rows than columns, in
    double precision: as accurate for single-precision rows as their singular value decomposition,
    which costs several times as much.

    Args:
        x: ``[N, d]``, column means zero.
        most: how many axes to return at most.

    Returns:
        ``[d, r]`` in the type of ``x``, r at most ``min(d, most)``; fewer where the rows span fewer
        dimensions.
    """
    rows, width = x.shape
    if rows >= width:
        square = sum(part.double().mT @ part.double() for part in x.split(ROWS))
        return torch.linalg.eigh(square).eigenvectors.flip(1)[:, :most].to(x.dtype)
    wide = x.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    varying = int((values > torch.finfo(torch.float64).eps * rows * values[-1]).sum())
    kept = vectors.flip(1)[:, : min(most, varying)]
    # What rounding left of the small axes is not quite orthogonal; QR keeps every leading span.
    return torch.linalg.qr(wide.mT @ kept).Q.to(x.dtype)


def nearest_isometry(product: Tensor) -> Tensor:
    """The matrix with orthonormal rows nearest to ``product [r, d]``, r at most d.

    ``U V^T`` from its singular vectors (Schoenemann 1966).
    """
    left, _, right = torch.linalg.svd(product, full_matrices=False)
    return left @ right
