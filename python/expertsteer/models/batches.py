"""Rows of token ids as batches: sorted by length, padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(rows: Sequence[Sequence[int]], side: str = "right") -> tuple[Tensor, Tensor]:
    """Token ids and attention mask ``[B, T]`` int64.

    On the right whatever the tokenizer prefers: no token then sees padding before it, which
    recurrent models could not ignore, and positions count from 0 as in an unpadded text. On the
    left only to write on behind all rows. The padding's id is never seen; 0 exists in every
    vocabulary.
    """
    tokens = [torch.tensor(row, dtype=torch.int64, device="cpu") for row in rows]
    ones = [torch.ones_like(row) for row in tokens]
    ids, mask = (pad_sequence(t, batch_first=True, padding_side=side) for t in (tokens, ones))
    return ids, mask


def common_end(a: Sequence[int], b: Sequence[int]) -> int:
    """How many last tokens are the same."""
    pairs = zip(reversed(a), reversed(b))
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def length_batches(
    lengths: Sequence[int],
    batch_size: int,
    fits: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Example indices in batches of similar length, the longest first: memory fails at once.

    Args:
        fits: whether these examples may share a batch; one alone always may.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = not batches or len(batches[-1]) >= batch_size
        if full or (fits is not None and not fits([*batches[-1], i])):
            batches.append([])
        batches[-1].append(i)
    return batches
