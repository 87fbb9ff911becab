"""What a call of `steer` must look like, apart from the operation itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import OPERATIONS


def check_steer(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None,
    operation: str,
    gates: Tensor | None,
    thresholds: Tensor | None,
    inverse_norms: Tensor | None,
) -> None:
    """Raise the ValueError that a malformed call deserves.

    Reading row numbers waits for a GPU, so that check is left out where nothing may wait: under a
    compiler and while a CUDA graph is captured.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation must be one of {OPERATIONS}, came {operation!r}")
    if hidden.ndim != 3:
        raise ValueError(f"hidden must be [batch, tokens, width], came {tuple(hidden.shape)}")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden must be of a floating-point type, came {hidden.dtype}")
    batch, tokens, width = hidden.shape
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] != width:
        raise ValueError(
            f"table must be [rows, {width}] with at least row 0, came {tuple(table.shape)}"
        )
    if table.dtype != wide or not table.is_contiguous():
        raise ValueError(
            f"table must be contiguous and {wide} for a hidden of {hidden.dtype}, came "
            f"{table.dtype} with strides {table.stride()}; call .to({wide}).contiguous() once"
        )
    if (gates is None) != (thresholds is None):
        raise ValueError("gates and thresholds belong together: give both, or neither")
    _check_per_sequence("rows", rows, torch.int32, batch, 2)
    _check_per_sequence("strengths", strengths, wide, batch, 2)
    if rows.shape[1] != strengths.shape[1]:
        raise ValueError(
            "rows and strengths must hold one number per vector, came "
            f"{tuple(rows.shape)} and {tuple(strengths.shape)}"
        )
    if gates is not None and thresholds is not None:
        _check_per_sequence("gates", gates, torch.int32, batch, 1)
        _check_per_sequence("thresholds", thresholds, wide, batch, 1)
    if mask is not None and (mask.shape != (batch, tokens) or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of shape {(batch, tokens)}, came "
            f"{tuple(mask.shape)} of {mask.dtype}"
        )
    given = inverse_norms
    if given is not None and (
        given.shape != table.shape[:1] or given.dtype != wide or not given.is_contiguous()
    ):
        raise ValueError(
            f"inverse_norms must be contiguous, of shape {tuple(table.shape[:1])} and {wide}, as "
            f"ops.inverse_norms(table) gives them; came {tuple(given.shape)} of {given.dtype}"
        )
    others = {
        "table": table,
        "rows": rows,
        "strengths": strengths,
        "mask": mask,
        "gates": gates,
        "thresholds": thresholds,
        "inverse_norms": inverse_norms,
    }
    for name, tensor in others.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(
                f"{name} must be on {hidden.device} with hidden, came on {tensor.device}"
            )
    if not _may_not_wait(hidden):
        _check_in_table("rows", rows, table.shape[0])
        _check_in_table("gates", gates, table.shape[0])


def _check_per_sequence(
    name: str, values: Tensor, dtype: torch.dtype, batch: int, dims: int
) -> None:
    shape = tuple(values.shape)
    fits = values.ndim == dims and shape[0] in (1, batch) and (dims == 1 or shape[1] >= 1)
    if not fits or values.dtype != dtype:
        expected = f"[{batch} or 1]" if dims == 1 else f"[{batch} or 1, vectors]"
        raise ValueError(f"{name} must be {expected} of {dtype}, came {shape} of {values.dtype}")


def _may_not_wait(hidden: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return True
    return hidden.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_in_table(name: str, numbers: Tensor | None, table_rows: int) -> None:
    if numbers is None or numbers.numel() == 0:
        return
    low, high = (int(n) for n in numbers.aminmax())
    if low < 0 or high >= table_rows:
        raise ValueError(
            f"{name} must lie within the table's rows 0..{table_rows - 1}, came {low}..{high}"
        )
