"""The numbers that a slot of the extension keeps between calls (see `csrc/slot.cpp`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import native, reference_steer

if TYPE_CHECKING:
    from .._bank import Buffers

_DEVICES = {"cpu": 1, "cuda": 2}  # as DLPack numbers them


def standing(
    buffers: Buffers, device: torch.device, dtype: torch.dtype, operation: str
) -> tuple[int, ...]:
    """Sixteen numbers for ``_C.Slot.arm``; the buffers must outlive the slot's use of them."""
    index = device.index
    if index is None:
        index = torch.cuda.current_device() if device.type == "cuda" else 0
    gates, thresholds = buffers.gates, buffers.thresholds
    return (
        native._DTYPES[dtype],
        _DEVICES[device.type],
        index,
        buffers.table.shape[1],
        reference_steer.OPERATIONS.index(operation),
        buffers.rows.shape[1],
        buffers.table.data_ptr(),
        buffers.table.stride(0),
        buffers.inverse_norms.data_ptr(),
        buffers.rows.data_ptr(),
        buffers.rows.shape[0],
        buffers.strengths.data_ptr(),
        0 if gates is None else gates.data_ptr(),
        1 if gates is None else gates.shape[0],
        0 if thresholds is None else thresholds.data_ptr(),
        torch.get_num_threads(),
    )
