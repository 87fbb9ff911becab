"""Values that people give as tensors, arrays or lists, whatever torch's defaults are set to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """A tensor as it is, where it is; an array in its type and Python's numbers, on the CPU.

    `torch.as_tensor` would move a tensor to the default device, and give numbers the default type,
    which people set to load models in half precision. Here floats without a type become float32.
    """
    if isinstance(values, Tensor):
        return values
    made = torch.as_tensor(values, device="cpu")
    if made.is_floating_point() and not hasattr(values, "dtype"):
        made = torch.as_tensor(values, dtype=torch.float32, device="cpu")
    return made


def integers(numbers: Iterable[int]) -> Tensor:
    """Indices, labels or token ids as int64, on the CPU."""
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")


def normal_draws(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Independent standard normal numbers on the CPU, the same for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu")


def permutation(count: int, seed: int) -> Tensor:
    """The numbers from 0 in an order drawn on the CPU, the same for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu")


def require_constants(vectors: Mapping[int, Tensor]) -> None:
    """No vector that somebody learns.

    Raises:
        ValueError: with the layers, and the way out.
    """
    learned = [layer for layer, vector in vectors.items() if vector.requires_grad]
    if learned:
        raise ValueError(
            f"vectors at layers {learned} require gradients, and none would reach them: what "
            "steers a model is a copy. Give vector.detach() to steer with what they are now; "
            "to learn them, add them in a forward hook of your own and give what came out"
        )


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` with the first offending index when ``tensor`` has NaN or infinity."""
    if bool(torch.isfinite(tensor.sum())):  # one pass; a sum that overflows is looked at closely
        return
    finite = torch.isfinite(tensor)
    if not finite.all():
        where = tuple((~finite).nonzero()[0].tolist())
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, but {bad} of {tensor.numel()} entries are NaN or infinite "
            f"(the first at index {where})"
        )


def row_indices(rows: Sequence[int] | Tensor, count: int) -> Tensor:
    rows = as_tensor(rows)
    if rows.dtype == torch.bool and rows.shape == (count,):
        rows = rows.nonzero().flatten()
    not_whole = rows.numel() > 0 and (rows.dtype == torch.bool or rows.is_floating_point())
    if rows.ndim != 1 or not_whole:
        raise ValueError(
            f"rows must be indices or a mask of {count} bools, came shape {tuple(rows.shape)} of "
            f"{rows.dtype}"
        )
    rows = rows.to(torch.int64)
    outside = rows[(rows < -count) | (rows >= count)]
    if outside.numel():
        raise ValueError(f"rows: {int(outside[0])} is out of range for {count} examples")
    return rows
