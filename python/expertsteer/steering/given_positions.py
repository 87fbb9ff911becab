"""Positions as they are given to `attach` and ``Steering.set``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..support.numbers import setting

POSITIONS = ("all", "prompt", "generated", "last")
Positions = str | Tensor | Callable[[Tensor, Mapping[str, Any]], Tensor]


class UnsteeredWarning(UserWarning):
    """``generate`` wrote tokens, and the positions chose none of those that the model read."""


_FARTHEST = 1 << 24  # a token's index; beyond it a mask up to there would be what runs out


def checked_positions(positions: Any) -> Positions:
    """A name, a mask ``[batch or 1, length]`` made bool, or a callable.

    Raises:
        ValueError: anything else.
    """
    if isinstance(positions, str) and positions in POSITIONS:
        return positions
    if callable(positions) and not isinstance(positions, Tensor):
        return positions
    given = positions
    if isinstance(positions, (list, tuple)) and len(positions):
        try:
            given = torch.as_tensor(positions, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            given = None  # ragged, or no numbers
    if isinstance(given, Tensor) and given.numel() and given.ndim == 2:
        return _checked_mask(given)
    came = tuple(given.shape) if isinstance(given, Tensor) else repr(positions)
    raise ValueError(
        f"positions must be one of {POSITIONS}, a mask [batch or 1, length] over the tokens (which "
        f"expertsteer.tokens_at makes of their indices), or a function of their places; came {came}"
    )


def tokens_at(indices: Iterable[int] | Iterable[Iterable[int]]) -> Tensor:
    """Positions for `attach` from the indices of tokens: a mask ``[batch, length]``, bool.

    Args:
        indices: those to steer, counted from 0 with the padding on the left: a list for each
            sequence (an empty one leaves it alone), or one list for all of them.

    Raises:
        ValueError: no sequence, no index in any of them, one that is no integer, is negative or
            lies beyond 2^24.
    """
    rows = list(indices)
    if not any(isinstance(row, Iterable) for row in rows):
        rows = [rows]
    rows = [list(row) if isinstance(row, Iterable) else [row] for row in rows]
    numbers = [index for row in rows for index in row]
    for index in numbers:
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise ValueError(f"indices of tokens must be integers, came {index!r}")
        if not 0 <= int(index) <= _FARTHEST:
            raise ValueError(
                f"indices of tokens count from 0 (up to 2^24), came {int(index)}; from the end of "
                'the prompt there is positions="last", or a function of the places'
            )
    if not numbers:
        raise ValueError(f"indices must name at least one token of one sequence, came {rows!r}")
    length = max(map(int, numbers)) + 1
    mask = torch.zeros(len(rows), length, dtype=torch.bool, device="cpu")
    for row, own in zip(mask, rows):
        row[[int(index) for index in own]] = True
    return mask


def _checked_mask(mask: Tensor) -> Tensor:
    mask = mask.detach()
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            "a mask of positions holds nothing but 0 and 1 (or False and True), came numbers from "
            f"{setting(mask.min().item())} to {setting(mask.max().item())}; of indices of tokens "
            "expertsteer.tokens_at makes one"
        )
    return mask.to(torch.bool)


def require_copies(what: str, given: int, batch: int, own: int | None) -> None:
    """What is given for each sequence serves a batch of those, or their beams and samples.

    Args:
        what: said in the error, before ``given`` sequences.
        own: the batch that ``generate`` was called with, ``None`` outside.

    Raises:
        ValueError: it is given for other sequences.
    """
    if given in (1, batch) or (given == own and batch % given == 0):
        return
    raise ValueError(
        f"{what} {given} sequences and this forward pass has {batch}"
        + (f" (generate was given {own})" if own not in (None, batch) else "")
        + "; give one entry per sequence of the batch"
    )
