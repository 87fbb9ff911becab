"""How far apart the states of a layer are: the unit of strength."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.numbers import short
from ..support.telling import tell

UNIT = "median deviation"
OLD_UNIT = "median norm"  # of artefacts that name no unit
_ROWS = 4096  # evenly spaced; medians of more tell no more


def median_deviation(states: Tensor, name: str = "states") -> float:
    """The length of the median deviations of states ``[N, d]``, taken dimension by dimension.

    ``sqrt(sum_j m_j^2)`` with ``m_j = median_i |h_ij - median_i h_ij|``. A dimension of enormous
    states counts by how far it moves, not by where it is, and a few enormous states not at all: on
    real models the median norm is up to a hundred times as much, and differs from it by another
    factor at every layer. It does not depend on a direction, so that a strength means the same
    along any. Where most states share every coordinate it is their root mean squared distance from
    their mean.

    Args:
        states: at most 4096 evenly spaced rows are read.
        name: what a warning calls them.

    Warns:
        UserWarning: all states are equal, so that their median norm has to serve.
    """
    rows = states[:: -(-len(states) // _ROWS)].to(torch.promote_types(states.dtype, torch.float32))
    around = rows - rows.median(dim=0).values
    found = around.abs().median(dim=0).values.double().norm()
    if not found > 0:
        found = (rows - rows.mean(dim=0)).double().square().sum(dim=1).mean().sqrt()
    if not found > 0:
        found = rows.double().norm(dim=1).median()
        tell(
            f"{name} are the same for every example, so they tell no unit of strength: it is their "
            f"length, {short(float(found))}; calibrate the strength"
        )
    return float(found)
