"""Examples that are copies of one another, by their states."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..support.tensors import permutation

NEAR = 1e-2  # rows closer than this share of a typical distance count as one
MOST_ROWS = 2000  # that are compared: all with all
_NAMED = 4  # rows of one text that a message lists


def copies(states: Tensor, most_rows: int = MOST_ROWS, seed: int = 0) -> tuple[float, str]:
    """How many rows of ``[N, d]`` remain when near-copies are one, and which are alike.

    Returns:
        The share of N (or of ``most_rows`` drawn rows) that remains, and the largest group of
        copies in words, such as "rows 0, 30, 60, 90 and 4 more"; empty where all rows differ.
    """
    rows = torch.arange(len(states), device="cpu")
    if len(states) > most_rows:
        rows = permutation(len(states), seed)[:most_rows]
        states = states[rows]
    group = _groups(states)
    sizes = np.bincount(group)
    alike = sorted(rows.numpy()[group == sizes.argmax()]) if sizes.max() > 1 else []
    return len(sizes) / len(group), _listed(alike)


def _groups(states: Tensor) -> np.ndarray:
    """For each row the number of its group, counted from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    centred = (states - states.mean(dim=0)).float()
    # From the mean, not from one another: were most rows copies, most distances would be none.
    typical = 2**0.5 * centred.norm(dim=1).median()
    if not typical > 0:
        return np.zeros(len(states), dtype=np.int64)
    i, j = (torch.cdist(centred, centred) <= NEAR * typical).nonzero(as_tuple=True)
    shape = len(states), len(states)
    near = coo_array((np.ones(len(i)), (i.cpu().numpy(), j.cpu().numpy())), shape=shape)
    return connected_components(near, directed=False)[1]


def _listed(rows: list[int]) -> str:
    if not rows:
        return ""
    more = len(rows) - _NAMED
    named = ", ".join(str(row) for row in rows[:_NAMED])
    return f"rows {named}" + (f" and {more} more" if more > 0 else "")
