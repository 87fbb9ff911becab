"""Steering by a table of vectors in the compiled extension, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ...support.tracing import is_traced, is_transformed
from .. import extension
from . import reference


def steer(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None = None,
    *,
    operation: str = "add",
    gates: Tensor | None = None,
    thresholds: Tensor | None = None,
    inverse_norms: Tensor | None = None,
) -> Tensor:
    """`reference.steer`, in place; returns ``hidden``.

    Where autograd, a tracer or a transform of `torch.func` follows the call the reference serves it
    out of place, and a ``hidden`` whose elements share memory (an expanded batch) is copied first:
    use the returned tensor.
    """
    given = (hidden, table, rows, strengths, mask)
    if _is_followed([t for t in (*given, gates, thresholds) if t is not None]):
        options = {"gates": gates, "thresholds": thresholds, "inverse_norms": inverse_norms}
        return reference.steer(*given, operation=operation, **options)
    if _shares_memory(hidden):
        hidden = hidden.clone(memory_format=torch.contiguous_format)
    if inverse_norms is None and (gates is not None or operation in ("remove", "clamp")):
        inverse_norms = reference.inverse_norms(table)
    # Copies, where there are any, live until the call below is made or enqueued.
    rows, strengths = _packed(rows), _packed(strengths)
    number = reference.OPERATIONS.index(operation)
    given = (hidden, table, rows, strengths, mask, number, gates, thresholds, inverse_norms)
    if hidden.is_cuda:
        with torch.cuda.device(hidden.device):
            extension._C.steer_cuda(*given, torch.cuda.current_stream().cuda_stream)
    else:
        extension._C.steer_cpu(*given, torch.get_num_threads())
    return hidden


def _is_followed(tensors: list[Tensor]) -> bool:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    return is_traced(tensors[0]) or any(map(is_transformed, tensors))


def _shares_memory(hidden: Tensor) -> bool:
    """Whether elements lie at one address (an expanded batch), so that none may be written."""
    return any(step == 0 and size > 1 for step, size in zip(hidden.stride(), hidden.shape))


def _packed(values: Tensor) -> Tensor:
    return values if values.stride(1) == 1 else values.contiguous()
