"""Rows of token ids as batches: sorted by length, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask ``[B, T]`` int64, padded on the right.

    On the right whatever the tokenizer prefers: no token then sees padding before it, which
    recurrent models could not ignore, and positions count from 0 as in an unpadded text. The
    padding's id is never seen either; 0 exists in every vocabulary.
    """
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64, device="cpu")
        mask[i, : len(row)] = 1
    return ids, mask


def common_end(a: Sequence[int], b: Sequence[int]) -> int:
    """How many last tokens are the same."""
    pairs = zip(reversed(a), reversed(b))
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Example indices in batches of similar length, the longest first: memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
