"""The nearest-neighbour estimator: a few components of each layer, then neighbour counts."""

from __future__ import annotations

from torch import Tensor

from ..ops import ksg_information
from ..ops.information.reference import on_a_grid
from ..ops.products import times_rows
from .layers import Layers
from .projection import Wanted, centre, components, stacked
from .sampling import Draw

MOST_COMPONENTS = 8


def choose_components(asked: int | None, most: int, width: int, examples: int, k: int) -> int:
    """How many components to keep, or why the number asked for cannot be.

    Raises:
        ValueError: more than ``most``, more than the width, or more than there are rows.
    """
    if not isinstance(k, int) or not 1 <= k < examples:
        raise ValueError(
            f"k must be an integer between 1 and the number of other examples, {examples - 1}; "
            f"came {k}"
        )
    if asked is None:
        return min(4, most, width, examples - 1)
    if not isinstance(asked, int) or not 1 <= asked <= width:
        raise ValueError(
            f"components must be an integer between 1 and the width {width}, came {asked}"
        )
    if asked > most:
        raise ValueError(
            f"components must be at most {most} for estimator='ksg', came {asked}: in more "
            f"dimensions the neighbours are so far away that it underestimates badly; pass "
            f"max_components={asked} to have it all the same, or take estimator='gaussian'"
        )
    if asked > examples - 1:
        raise ValueError(
            f"{asked} components need at least {asked + 1} examples, came {examples}; give more "
            f"examples or ask for at most {examples - 1} components"
        )
    return asked


class Ksg:
    """Codes of every layer, and the information that any of their rows hold.

    Each layer is projected on all rows: it never sees the other side, so independent layers stay
    independent, and half of the rows would cost neighbours more than they gain.

    Attributes:
        sizes: the number of rows, once: there are no halves.
        lost: rows that count for nothing in the variance: none.
        null_rate: the floor that chance gives falls as N ** -null_rate.
    """

    null_rate, lost = 0.5, 0

    def __init__(self, x: Layers, y: Layers, wanted: Wanted, k: int, variant: int, backend: str):
        coded = [_codes(side, wanted) for side in (x, y)]
        self._codes = [on_a_grid(stacked(codes, wanted.count)) for codes in coded]
        self._options = k, variant
        self._backend = backend
        self.sizes = [x.shape.examples]

    def estimate(self, rows: Draw | None = None) -> Tensor:
        """``[L_x, L_y]`` float64 in nats."""
        x, y = self._codes
        if rows is not None:
            x, y = x[:, rows[0][0]], y[:, rows[0][1]]
        return ksg_information(x, y, *self._options, backend=self._backend).cpu()


def _codes(layers: Layers, wanted: Wanted) -> list[Tensor]:
    """Per layer ``[N, r]`` float64: principal components of unit variance each."""
    codes = []
    for index, states in enumerate(layers):
        rows, mean = centre(states.clone())
        axes = components(rows, mean, wanted, states, layers.label(index))
        code = times_rows(rows, axes).double()
        codes.append(code / code.std(dim=0))
    return codes
