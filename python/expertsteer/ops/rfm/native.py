"""The RFM's operations on a CPU: element-wise passes from the extension, products by halves.

The leading batch is a loop: from a few hundred points on, one problem fills a processor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension, products
from ..products import cholesky_solve, symmetric_lower
from .carry import Carry


def _count(sizes: Tensor | None, b: int, n: int) -> int:
    return n if sizes is None else int(sizes[b])


def gram(points: Tensor) -> Tensor:
    """`reference.gram`."""
    return _mirrored(cross_gram(points, points))


def cross_gram(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`reference.cross_gram`, its lower triangle only."""
    same = left is right
    left = left.contiguous()
    right = left if same else right.contiguous()
    batch, n, _ = left.shape
    out = left.new_empty(batch, n, n) if out is None else out
    for b in range(batch):
        a = left[b]
        symmetric_lower(a, a if same else right[b], out[b])
    return out


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """`reference.times_transposed`."""
    pairs = zip(left.contiguous(), right.contiguous())
    return _stacked([products.times_transposed(a, b) for a, b in pairs])


def inner(rows: Tensor) -> Tensor:
    """`reference.inner`."""
    batch, outputs, n, d = rows.shape
    out = rows.new_empty(batch, d, d)
    for b in range(batch):
        for c in range(outputs):
            transposed = rows[b, c].T.contiguous()
            if c == 0:
                symmetric_lower(transposed, transposed, out[b])
            else:
                part = torch.empty_like(out[b])
                symmetric_lower(transposed, transposed, part)
                out[b] += part
    return _mirrored(out)


def _mirrored(matrices: Tensor) -> Tensor:
    """The lower triangles copied onto the upper ones, in place."""
    for matrix in matrices:
        extension._C.mirror_lower(matrix, torch.get_num_threads())
    return matrices


def median_distance(gram: Tensor, sizes: Tensor | None = None) -> Tensor:
    """`reference.median_distance` without its n x n temporaries."""
    out = gram.new_empty(gram.shape[0])
    for b, p in enumerate(gram):
        count = _count(sizes, b, gram.shape[1])
        p = p.contiguous() if count == gram.shape[1] else p[:count, :count].contiguous()
        out[b] = extension._C.median_distance(p, torch.get_num_threads())
    return out


def laplace(
    gram: Tensor, bandwidth: Tensor, sizes: Tensor | None = None, eps: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """`reference.laplace` in one pass, K by its lower triangle only."""
    gram = gram.contiguous()
    kernel, weights = torch.empty_like(gram), torch.empty_like(gram)
    laplace_into(gram, bandwidth, sizes, kernel, weights, eps)
    return kernel, weights


def laplace_into(
    gram: Tensor,
    bandwidth: Tensor,
    sizes: Tensor | None,
    kernel: Tensor,
    weights: Tensor | None,
    eps: float = 1e-10,
) -> None:
    """`laplace` into contiguous buffers: K, which may replace ``gram``, and W unless ``None``."""
    n = gram.shape[1]
    threads = torch.get_num_threads()
    for b in range(gram.shape[0]):
        slopes = None if weights is None else weights[b]
        extension._C.laplace(gram[b], float(bandwidth[b]), eps, kernel[b], slopes, threads)
        count = _count(sizes, b, n)
        if count < n:
            kernel[b, count:] = 0
            kernel[b].diagonal()[count:] = 1
            if weights is not None:
                weights[b, count:] = 0
                weights[b, :, count:] = 0


def ridge_solve(kernel: Tensor, reg: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.ridge_solve`, factorised in place of ``kernel``."""
    alpha, failed = torch.empty_like(y), kernel.new_zeros(len(kernel), dtype=torch.bool)
    for b, k in enumerate(kernel):
        k.diagonal().add_(float(reg[b]))
        alpha[b], definite = cholesky_solve(k, y[b])
        failed[b] = not definite
    return alpha, failed | ~torch.isfinite(alpha).flatten(1).all(dim=1)


def gradient_rows(
    weights: Tensor,
    alpha: Tensor,
    right: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    scratch: Tensor | None = None,
) -> Tensor:
    """`reference.gradient_rows` through T itself, written to ``scratch`` (any ``[B, n, n]``)."""
    weights, alpha = weights.contiguous(), alpha.contiguous()
    batch, n, outputs = alpha.shape
    scratch = torch.empty_like(weights) if scratch is None else scratch
    sums = alpha.new_empty(n)
    rows = []  # transposed, which is how their own products want them
    for b in range(batch):
        transposed = right[b].T.contiguous()
        for c in range(outputs):
            _transform(weights[b], alpha[b, :, c].contiguous(), scratch[b], sums)
            rows.append(products.times_transposed(transposed, scratch[b]))
    rows = _stacked(rows).view(batch, outputs, -1, n)  # [B, C, m, n]
    for b in range(batch):
        if centre is not None and bool(centre[b]):
            count = _count(sizes, b, n)
            mean = rows[b].sum(dim=(0, 2)) / (outputs * count)
            rows[b, :, :, :count] -= mean.unsqueeze(-1)
    return rows.mT


def _stacked(tensors: list[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _transform(weights: Tensor, alpha: Tensor, out: Tensor, sums: Tensor) -> None:
    """T of one output and its row sums."""
    extension._C.gradient_transform(weights, alpha, out, sums, torch.get_num_threads())


def agop(
    gram: Tensor,
    weights: Tensor,
    alpha: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> tuple[Tensor, Carry]:
    """`reference.agop`; ``out`` may be ``gram`` itself, ``scratch`` is any ``[B, n, n]`` buffer.

    Each output takes 3 n^3 operations: T P, and half of its symmetric product. The closed form of
    ``sum_c T_c^T T_c`` would take fewer for several, but squares the cancellation in T P: its
    single-precision predictions were twenty times farther from double precision.
    """
    gram, weights, alpha = gram.contiguous(), weights.contiguous(), alpha.contiguous()
    out = torch.empty_like(gram) if out is None else out
    scratch = torch.empty_like(gram) if scratch is None else scratch
    batch, n, outputs = alpha.shape
    sums = alpha.new_empty(batch, outputs, n)
    rows = []  # [n, C, n] each: the rows of all outputs side by side, transposed
    for b in range(batch):
        side_by_side = _transposed_rows(gram[b], weights[b], alpha[b], sums[b], scratch[b])
        if centre is not None and bool(centre[b]):
            count = _count(sizes, b, n)
            mean = side_by_side.sum(dim=(1, 2)) / (outputs * count)
            side_by_side[:, :, :count] -= mean.view(-1, 1, 1)
        flat = side_by_side.view(n, -1)
        symmetric_lower(flat, flat, out[b])
        rows.append(side_by_side)
    _mirrored(out)
    found = _stacked(rows).permute(0, 2, 3, 1)  # [B, C, n, n]
    return out, Carry(weights, alpha, sums.mT, centre, sizes, rows=found)


def _transposed_rows(gram, weights, alpha, sums, scratch) -> Tensor:
    """``(T_c P)^T = P T_c^T`` of every output, ``[n, C, n]``."""
    n, outputs = alpha.shape
    if outputs == 1:
        _transform(weights, alpha[:, 0].contiguous(), scratch, sums[0])
        return products.times_transposed(gram, scratch).unsqueeze(1)
    rows = scratch.new_empty(n, outputs, n)
    for c in range(outputs):
        _transform(weights, alpha[:, c].contiguous(), scratch, sums[c])
        rows[:, c] = products.times_transposed(gram, scratch)
    return rows
