"""Mutual information in the compiled extension, on ``torch.get_num_threads()`` threads of a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension


def why_not_ksg(device: torch.device, dtype: torch.dtype) -> str | None:
    """As `extension.why_not`, for distances and counts: single precision, on a CPU."""
    if extension.MISSING is not None:
        return extension.MISSING
    if device.type != "cpu":
        return f"device {device} is not the CPU"
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"


def max_norm_distances(codes: Tensor, rows: range) -> Tensor:
    """`reference.max_norm_distances` on ``torch.get_num_threads()`` threads."""
    layers, n, _ = codes.shape
    out = codes.new_empty(layers, len(rows), n)
    columns = codes.mT.contiguous()
    extension._C.max_norm_distances_cpu(columns, out, rows.start, torch.get_num_threads())
    return out


def ksg_counts(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[Tensor, Tensor]:
    """`reference.ksg_counts` on ``torch.get_num_threads()`` threads."""
    x, y = x.contiguous(), y.contiguous()
    shape = x.shape[0], y.shape[0], x.shape[1]
    n_x, n_y = (x.new_empty(shape, dtype=torch.int32) for _ in range(2))
    extension._C.ksg_counts_cpu(x, y, n_x, n_y, k, variant, torch.get_num_threads())
    return n_x, n_y


def whiten(codes: Tensor) -> Tensor | None:
    """`reference.whiten` of ``[L, n, r]`` float64, transposed and rounded: ``[L, r, n]`` float32.

    Computed in double precision. None where a covariance is singular.
    """
    codes = codes.contiguous()
    layers, n, r = codes.shape
    out = codes.new_empty(layers, r, n, dtype=torch.float32)
    return out if extension._C.whiten_cpu(codes, out, torch.get_num_threads()) else None


def log_determinants(product: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """``-1/2 log det(1 - R R^T)`` (float64) of every block R^T of a contiguous float32
    ``[columns s, rows r]``, and the smallest pivot (float32, not above 0 where there is no
    determinant), both ``[rows, columns]``."""
    nats = product.new_empty(rows, columns, dtype=torch.float64)
    smallest = product.new_empty(rows, columns)
    extension._C.log_determinants_cpu(product, nats, smallest, torch.get_num_threads())
    return nats, smallest
