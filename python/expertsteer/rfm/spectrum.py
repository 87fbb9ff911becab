"""The leading eigenvectors of an RFM's metric from its n x n matrices alone.

Every metric M_t lies in the row space of X, so its eigenvectors are ``X^T c``, and

    M_{t+1} X^T c = X^T (B_0 P_0 B_1 P_1 ... B_t P_t c),      B_t = sum_c T_c^T T_c,

a chain of n x n matrix-vector products (`Carry.apply`). Lanczos with full reorthogonalisation in
the inner product ``<a, b> = a^T P_0 b`` (that of X^T a and X^T b) finds the largest eigenvalues;
the d-dimensional vectors are formed once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..support.tensors import normal_draws
from .steps import Step

# Of the largest eigenvalue. The n x n map is symmetric but for the rounding of P, which it
# multiplies by W^2: by much where points nearly coincide. From 0.06 on some directions of such
# problems were lost to it, below that none of them.
ASYMMETRY = 0.01


class Directions(NamedTuple):
    """Leading eigenvectors of the AGOP, the largest first.

    Attributes:
        vectors: ``[k, D]`` or ``[B, k, D]``, orthonormal.
        eigenvalues: ``[k]`` or ``[B, k]``.
        explained: their share of the AGOP's trace, ``[k]`` or ``[B, k]``.
    """

    vectors: Tensor
    eigenvalues: Tensor
    explained: Tensor


def chain(steps: list[Step], depth: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """``c -> B_0 P_0 ... B_{b-1} P_{b-1} c`` for ``[B, n]``, b the depth of each problem.

    Scaled, so that large states or labels overflow nowhere; also returns the logarithm ``[B]`` of
    the factor by which the metric's eigenvalues exceed those of the map.
    """
    logs, scales = torch.zeros_like(steps[0].bandwidth, dtype=torch.float64), []
    for t in range(int(depth.max())):
        before, after = (s.diagonal.amax(dim=-1).double() for s in steps[t : t + 2])
        rescale = 1.0 if steps[t].rescale is None else steps[t].rescale.double()
        scales.append((after / before * rescale).to(steps[t].diagonal.dtype).view(-1, 1))
        logs += torch.where(depth > t, (after / before).log(), 0.0)

    def apply(c: Tensor) -> Tensor:
        for t in reversed(range(len(scales))):
            applied = steps[t].carry.apply(c.unsqueeze(-1)).squeeze(-1) / scales[t]
            c = (
                applied
                if bool((depth > t).all())
                else torch.where(depth.view(-1, 1) > t, applied, c)
            )
        return c

    return apply, logs


class Seen(NamedTuple):
    """The gradients whose Gram matrix is the metric, seen along orthonormal axes.

    ``M_depth = exp(log) axes (sum_c F_c F_c^T) axes^T``.
    """

    axes: Tensor | None  # [B, d, k] of the rows' space; None for the coordinates themselves
    factors: list[Tensor]  # F_c, [B, k, n]
    log: Tensor  # [B]

    def apply(self, vector: Tensor) -> Tensor:
        """``sum_c F_c F_c^T v`` for ``[B, k]``."""
        column = vector.unsqueeze(-1)
        return sum(f @ (f.mT @ column) for f in self.factors).squeeze(-1)

    def log_trace(self) -> Tensor:
        """Of the metric: a sum of squares, in which nothing cancels."""
        squares = sum(f.double().square().sum(dim=(1, 2)) for f in self.factors)
        return self.log + squares.log()


def gradients_seen(steps: list[Step], depth: Tensor, points: Tensor, axes: bool) -> Seen:
    """The gradients of the fit before ``depth`` along the axes of ``points [B, n, d]``.

    Args:
        axes: whether the axes themselves are needed.
    """
    n, d = points.shape[1:]
    basis, rows = None, points.mT
    if d > n:
        basis, rows = torch.linalg.qr(points.mT, mode="reduced" if axes else "r")
    logs = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    found, kept = logs.clone(), None
    last = int(depth.max())
    for t in range(last):
        size = rows.abs().amax(dim=(1, 2))
        rows, logs = rows / size.view(-1, 1, 1), logs + size.double().log()
        factors, rescale = steps[t].carry.gradients(rows), steps[t].rescale
        scale = logs.new_zeros(len(logs)) if rescale is None else rescale.double().log()
        here = depth == t + 1
        kept = factors if kept is None else [
            torch.where(here.view(-1, 1, 1), new, old) for new, old in zip(factors, kept)
        ]  # fmt: skip
        found = torch.where(here, 2 * logs - scale, found)
        if t + 1 < last:
            rows, logs = steps[t].carry.advance(rows)[0], logs - scale
    return Seen(basis, kept, found)


Map = Callable[[Tensor], Tensor]


class Eigenpairs(NamedTuple):
    """What `lanczos` found.

    Attributes:
        vectors: coefficients ``[B, count, n]``, orthogonal in the inner product (zero where it has
            fewer dimensions).
        values: ``[B, count]``, the largest first.
        asymmetry: ``[B]``, how far the map is from symmetric in the inner product where it was
            tried, in units of its largest eigenvalue.
    """

    vectors: Tensor
    values: Tensor
    asymmetry: Tensor


def lanczos(
    inner: Map, apply: Map, count: int, start: Tensor, tolerated: float = torch.inf
) -> Eigenpairs:
    """The ``count`` largest eigenpairs of a map, symmetric in the inner product of ``inner``.

    Args:
        inner: ``v -> P v`` on ``[B, n]`` with P positive semidefinite: the product is ``a^T P b``.
        apply: the map on ``[B, n]``.
        start: ``[B, n]``, a guess at the leading eigenvector.
        tolerated: a larger asymmetry of any problem ends the search.
    """
    batch, n = start.shape
    count = min(count, n)
    eps, tiny = torch.finfo(start.dtype).eps, torch.finfo(start.dtype).tiny

    def measured(vector: Tensor) -> tuple[Tensor, Tensor]:
        """``P v`` and the length of v in the inner product."""
        image = inner(vector)
        return image, (vector * image).sum(dim=-1).clamp(min=0).sqrt()

    vector = start / start.norm(dim=1, keepdim=True).clamp(min=tiny)
    image, norm = measured(vector)
    alive = norm > 0
    basis, images, columns = [], [], []  # c_k, P_0 c_k, and <c_j, A c_k>
    lack = torch.zeros_like(norm)
    for k in range(n):
        inverse = torch.where(alive, 1 / norm, 0.0).unsqueeze(-1)
        basis.append(vector * inverse)
        images.append(image * inverse)
        vector, column = _orthogonal(apply(basis[-1]), basis, images)
        columns.append(column)
        if k:  # A c_{k-1} had the length `norm` along c_k, and nothing along later ones
            expected = torch.zeros_like(column[:, :k])
            expected[:, -1] = norm * alive
            lack = torch.maximum(lack, (column[:, :k] - expected).norm(dim=1))
        image, norm = measured(vector)
        # Where only rounding is left, the problem's Krylov space is exhausted.
        alive = norm > 100 * eps * (column.square().sum(dim=-1) + norm.square()).sqrt()
        if k + 1 < min(count + 1, n):
            continue
        projected = _projected(columns)
        if not bool(projected.isfinite().all()):
            raise ValueError(
                "the average gradient outer product is not finite: the states' scale overflows "
                "their type; give float64 states"
            )
        values, ritz = torch.linalg.eigh(projected)
        asymmetry = lack / values[:, -1].abs().clamp(min=tiny)
        error = (norm * alive).unsqueeze(-1) * ritz[:, -1, -count:].abs()
        close = bool((error <= eps**0.75 * values[:, -1:].abs()).all())
        if close or bool((asymmetry > tolerated).any()):
            break
    coefficients = torch.einsum("kbn,bkm->bmn", torch.stack(basis), ritz[:, :, -count:])
    return Eigenpairs(coefficients.flip(1), values[:, -count:].flip(1), asymmetry)


def noise_like(guess: Tensor) -> Tensor:
    """A tenth of each guess's length in a fixed random direction: a guess may be orthogonal to the
    answer."""
    n = guess.shape[1]
    noise = normal_draws(n, seed=0, dtype=torch.float64)
    return 0.1 * n**-0.5 * guess.norm(dim=1, keepdim=True) * noise.to(guess)


def _projected(columns: list[Tensor]) -> Tensor:
    """The symmetric k x k matrix whose upper triangle came column by column."""
    k = len(columns)
    matrix = columns[0].new_zeros(columns[0].shape[0], k, k)
    for j, column in enumerate(columns):
        matrix[:, : j + 1, j] = column
        matrix[:, j, : j + 1] = column
    return matrix


def _orthogonal(vector: Tensor, basis: list, images: list) -> tuple[Tensor, Tensor]:
    """``vector`` less its parts along ``basis``, and those parts ``[B, k]``."""
    kept, seen = torch.stack(basis), torch.stack(images)
    total = 0
    for _ in range(2):  # twice is enough to reach working precision
        overlap = torch.einsum("kbn,bn->bk", seen, vector)
        vector = vector - torch.einsum("bk,kbn->bn", overlap, kept)
        total = total + overlap
    return vector, total
