"""A walk over the header of a GGUF file: whether what it declares fits into the file.

The gguf package believes every count that it reads, and runs for years over an array of 2^40
entries that are not there.
"""

from __future__ import annotations

import math
import struct

from ..support.numbers import count as thousands

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a type
_STRING, _ARRAY = 8, 9
_DEEPEST = 4  # arrays of arrays
_DIMENSIONS = 4


def require_whole(data: memoryview) -> None:
    """Raise ``ValueError`` unless everything that the header declares lies in ``data``."""
    walk = _Walk(data)
    if bytes(walk.take(4)) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = walk.number(4)
    if version & 0xFFFF == 0:  # written in the other byte order, as the package tells it
        walk.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3")
    tensors, fields = walk.number(8), walk.number(8)
    walk.require(tensors, 8 + 4 + 4 + 8, "tensors")
    walk.require(fields, 8 + 4 + 1, "fields")
    names = [_field(walk) for _ in range(fields)]
    named = [_tensor(walk) for _ in range(tensors)]
    for what, found in (("field", names), ("tensor", named)):
        if len(set(found)) < len(found):
            raise ValueError(f"it has two of one {what}'s name")


def _field(walk: _Walk) -> bytes:
    name = walk.string()
    walk.value(walk.number(4), 0)
    return name


def _tensor(walk: _Walk) -> bytes:
    name, dimensions = walk.string(), walk.number(4)
    if dimensions > _DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions, expected at most {_DIMENSIONS}")
    shape = [walk.number(8) for _ in range(dimensions)]
    walk.take(4 + 8)  # its type, and where its data lie
    if math.prod(shape) > 8 * len(walk.data):  # the densest type has more than a bit each
        raise ValueError(f"a tensor of shape {shape} in a file of {len(walk.data)} bytes")
    return name


class _Walk:
    """A place in the file that only moves over bytes that are there."""

    def __init__(self, data: memoryview):
        self.data, self._place, self.order = data, 0, "<"

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self._place:
            raise ValueError(f"it ends before {thousands(count)} bytes that it declares")
        self._place += count
        return self.data[self._place - count : self._place]

    def require(self, count: int, each: int, what: str) -> None:
        if count * each > len(self.data) - self._place:
            raise ValueError(f"it declares {thousands(count)} {what}, more than it has room for")

    def number(self, size: int) -> int:
        return struct.unpack(self.order + ("I" if size == 4 else "Q"), self.take(size))[0]

    def string(self) -> bytes:
        return bytes(self.take(self.number(8)))

    def value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self.take(_SIZES[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number(4), self.number(8)
            if inner in _SIZES:
                self.take(count * _SIZES[inner])
            else:
                self.require(count, 8, "entries")
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise ValueError(f"a value of type {kind}, which is none")
