"""From validated tensors to the pointers that the compiled extension takes; the only import of it.

The extension knows neither torch nor Python objects, so one wheel serves every torch release.
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


def steer_add(hidden: Tensor, delta: Tensor, mask: Tensor | None = None) -> Tensor:
    """`reference.steer_add`, in place; returns ``hidden``.

    A ``hidden`` whose rows are not contiguous, or that autograd records, is served out of place
    by the reference: the caller gets the right tensor either way and must use the returned one.
    """
    batch, tokens, width = hidden.shape
    batch_stride, token_stride, element_stride = hidden.stride()
    if element_stride != 1 or (hidden.requires_grad and torch.is_grad_enabled()):
        from . import reference

        return reference.steer_add(hidden, delta, mask)
    if mask is None:
        where = (0, 0, 0)
    else:
        where = (mask.data_ptr(), *mask.stride())
    arguments = (
        hidden.data_ptr(),
        _DTYPES[hidden.dtype],
        batch,
        tokens,
        width,
        batch_stride,
        token_stride,
        delta.data_ptr(),
        *where,
    )
    if hidden.is_cuda:
        with torch.cuda.device(hidden.device):
            _C.steer_add_cuda(*arguments, torch.cuda.current_stream().cuda_stream)
    else:
        _C.steer_add_cpu(*arguments)
    return hidden


def max_norm_distances(codes: Tensor, rows: range) -> Tensor:
    """`reference_mi.max_norm_distances` on ``torch.get_num_threads()`` threads."""
    layers, n, components = codes.shape
    columns = codes.mT.contiguous()
    out = torch.empty(layers, len(rows), n)
    sizes = layers, components, n, rows.start, len(rows)
    _C.max_norm_distances_cpu(columns.data_ptr(), out.data_ptr(), *sizes, torch.get_num_threads())
    return out


def ksg_counts(x: Tensor, y: Tensor, k: int, variant: int) -> tuple[Tensor, Tensor]:
    """`reference_mi.ksg_counts` on ``torch.get_num_threads()`` threads."""
    x, y = x.contiguous(), y.contiguous()
    (layers_x, rows, n), layers_y = x.shape, y.shape[0]
    n_x, n_y = (torch.empty(layers_x, layers_y, rows, dtype=torch.int32) for _ in range(2))
    pointers = [t.data_ptr() for t in (x, y, n_x, n_y)]
    sizes = layers_x, layers_y, rows, n
    _C.ksg_counts_cpu(*pointers, *sizes, k, variant, torch.get_num_threads())
    return n_x, n_y


def whiten(codes: Tensor) -> Tensor | None:
    """`reference.whiten` of ``[L, n, r]`` float64, transposed and rounded: ``[L, r, n]`` float32.

    Computed in double precision. None where a covariance is singular.
    """
    codes = codes.contiguous()
    layers, n, r = codes.shape
    out = torch.empty(layers, r, n)
    sizes = layers, n, r
    whole = _C.whiten_cpu(codes.data_ptr(), *sizes, out.data_ptr(), torch.get_num_threads())
    return out if whole else None


def log_determinants(
    product: Tensor, rows: int, columns: int, r: int, s: int
) -> tuple[Tensor, Tensor]:
    """``-1/2 log det(1 - R R^T)`` (float64) of every block R^T of a contiguous float32
    ``[columns s, rows r]``, and the smallest pivot (float32, not above 0 where there is no
    determinant), both ``[rows, columns]``."""
    nats = torch.empty(rows, columns, dtype=torch.float64)
    smallest = torch.empty(rows, columns)
    _C.log_determinants_cpu(
        product.data_ptr(),
        rows,
        columns,
        r,
        s,
        nats.data_ptr(),
        smallest.data_ptr(),
        torch.get_num_threads(),
    )
    return nats, smallest


def why_not_ksg(device: torch.device, dtype: torch.dtype) -> str | None:
    """As `why_not`, for distances and counts: single precision, in the processor's memory."""
    if _C is None:
        return MISSING
    if device.type != "cpu":
        return f"device {device} is not the CPU"
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"
