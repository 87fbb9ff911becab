"""Whether states on a device were finite, and whose fault it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..support.numbers import setting, short
from ..support.tracing import unwrapped
from .bank import Bank


class Watched:
    """Whether states on a device were finite, asked once and not at every pass.

    Looking at a state on a GPU waits for it. So the answers are gathered there, and read where
    ``generate`` ends or something is set.
    """

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    def add(self, hidden: Any) -> None:
        """Take note of one pass."""
        if not isinstance(hidden, Tensor) or hidden.device.type == "meta":
            return
        if hidden.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a graph that is replayed would keep the answer of its capture
        values = unwrapped(hidden)
        finite = torch.isfinite(values[:, -1] if values is hidden else values).all()
        known = self._finite is not None and self._finite.device == finite.device
        self._finite = finite & self._finite if known else finite

    def require_finite(self, bank: Bank) -> None:
        """Read the answers and forget them.

        Raises:
            RuntimeError: a state was not finite; with the layer of the largest vector.
        """
        finite, self._finite = self._finite, None
        if finite is not None and not bool(finite):
            layer, size = largest(bank, bank.layers)
            raise RuntimeError(
                f"states were not finite at strength {setting(bank.strength)}; the largest vector, "
                f"at layer {layer}, adds a norm of {short(float(size), 3)}; lower the strength, "
                "load the model in a wider type, or look whether it is finite unsteered"
            )


def largest(bank: Bank, layers: Sequence[int]) -> tuple[int, float]:
    sizes = {i: float(bank.displacement(i).norm()) for i in layers}
    layer = max(sizes, key=sizes.__getitem__)
    return layer, sizes[layer]
