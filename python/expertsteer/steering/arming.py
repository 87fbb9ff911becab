"""What a slot of the extension keeps between calls (see `csrc/slots/slot.cpp`)."""

from __future__ import annotations

from typing import Any

import torch

from ..ops.extension import DTYPES
from ..ops.steering.reference import OPERATIONS
from .bank import Buffers


def standing(buffers: Buffers, dtype: torch.dtype, operation: str) -> tuple[Any, ...]:
    """The arguments of ``_C.Slot.arm`` for hidden states of ``dtype`` where the buffers are."""
    return (
        DTYPES[dtype],
        OPERATIONS.index(operation),
        buffers.table,
        buffers.inverse_norms,
        buffers.rows,
        buffers.strengths,
        buffers.gates,
        buffers.thresholds,
        torch.get_num_threads(),
    )
