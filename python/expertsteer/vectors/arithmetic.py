"""Sums and multiples of steering vectors, taken over displacements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .metadata import require_same_target, shared


class Arithmetic:
    """``0.5 * a + 0.5 * b``, ``a - b``, ``-a``, ``a / 2``, ``sum([a, b])`` of `SteeringVectors`."""

    def __mul__(self, factor: float) -> Any:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return replace(self, vectors={i: factor * v for i, v in self.vectors.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Any:
        return self * (1 / divisor)

    def __radd__(self, other: Any) -> Any:
        return self if other == 0 else NotImplemented  # the start value of sum()

    def __neg__(self) -> Any:
        return -1.0 * self

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, Arithmetic):
            return NotImplemented
        if self.width != other.width:
            raise ValueError(f"cannot add vectors of width {self.width} and {other.width}")
        require_same_target(self.metadata, other.metadata)
        scales = other.scales | self.scales
        vectors = {
            layer: sum(v.displacement(layer) for v in (self, other) if layer in v.vectors) / scale
            for layer, scale in scales.items()
        }
        parts = [v.metadata for v in (self, other)]
        metadata = {**shared(*parts), "sum_of": parts}
        return replace(self, vectors=vectors, scales=scales, metadata=metadata)

    def __sub__(self, other: Any) -> Any:
        if not isinstance(other, Arithmetic):
            return NotImplemented
        return self + (-other)
