"""What the compiled extension is given; the only import of it.

The extension reads tensors without torch's headers, so one wheel serves every torch release. It
refuses tensors of another type, shape or layout than its kernels assume.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from .. import _C
except ImportError as error:  # a source tree without a build; the reference path serves
    _C = None
    MISSING = f"the compiled extension expertsteer._C is not available ({error}); pip install ."
else:
    MISSING = None
    _C.use_tensor_type(torch.Tensor)  # from torch 2.10 on, reads them without Python attributes

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of that kind, or ``None`` when it can."""
    if _C is None:
        return MISSING
    if dtype not in _DTYPES:
        return f"dtype {dtype} is not among {[str(d) for d in _DTYPES]}"
    if device.type == "cuda":
        return None if _C.with_cuda else "the extension was built without CUDA (EXPERTSTEER_CUDA)"
    return None if device.type == "cpu" else f"device {device.type} is neither cpu nor cuda"


def max_norm_distances(codes: Tensor, rows: range) -> Tensor:
    """`reference_mi.max_norm_distances` on ``torch.get_num_threads()`` threads."""
    layers, n, _ = codes.shape
    out = codes.new_empty(layers, len(rows), n)
    columns = codes.mT.contiguous()
    _C.max_norm_distances_cpu(columns, out, rows.start, torch.get_num_threads())
    return out


def ksg_counts(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[Tensor, Tensor]:
    """`reference_mi.ksg_counts` on ``torch.get_num_threads()`` threads."""
    x, y = x.contiguous(), y.contiguous()
    shape = x.shape[0], y.shape[0], x.shape[1]
    n_x, n_y = (x.new_empty(shape, dtype=torch.int32) for _ in range(2))
    _C.ksg_counts_cpu(x, y, n_x, n_y, k, variant, torch.get_num_threads())
    return n_x, n_y


def whiten(codes: Tensor) -> Tensor | None:
    """`reference.whiten` of ``[L, n, r]`` float64, transposed and rounded: ``[L, r, n]`` float32.

    Computed in double precision. None where a covariance is singular.
    """
    codes = codes.contiguous()
    layers, n, r = codes.shape
    out = codes.new_empty(layers, r, n, dtype=torch.float32)
    return out if _C.whiten_cpu(codes, out, torch.get_num_threads()) else None


def log_determinants(product: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """``-1/2 log det(1 - R R^T)`` (float64) of every block R^T of a contiguous float32
    ``[columns s, rows r]``, and the smallest pivot (float32, not above 0 where there is no
    determinant), both ``[rows, columns]``."""
    nats = product.new_empty(rows, columns, dtype=torch.float64)
    smallest = product.new_empty(rows, columns)
    _C.log_determinants_cpu(product, nats, smallest, torch.get_num_threads())
    return nats, smallest


def why_not_ksg(device: torch.device, dtype: torch.dtype) -> str | None:
    """As `why_not`, for distances and counts: single precision, in the processor's memory."""
    if _C is None:
        return MISSING
    if device.type != "cpu":
        return f"device {device} is not the CPU"
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"
