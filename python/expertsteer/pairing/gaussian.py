"""The Gaussian estimator: project on one half of the rows, whiten and estimate on the other."""

from __future__ import annotations

from functools import cache

import torch
from scipy.special import digamma
from torch import Tensor

from ..ops import gaussian_information, shrunk_gaussian_information
from ..ops.products import times_rows
from ..support.tensors import permutation
from .layers import Layers
from .projection import Wanted, centre, components, stacked
from .sampling import Draw


@cache
def gaussian_bias(n: int, r_x: int, r_y: int) -> float:
    """Expected excess of the plug-in Gaussian information over the truth, in nats.

    ``1/2 [f(r_x) + f(r_y) - f(r_x + r_y)]`` with ``f(d) = sum_{i<d} psi((n - 1 - i) / 2)``, from
    the expected log-determinant of a Wishart matrix with n - 1 degrees of freedom. Exact for
    Gaussian samples at every value of the information.
    """

    def f(d: int) -> float:
        return sum(float(digamma((n - 1 - i) / 2)) for i in range(d))

    return 0.5 * (f(r_x) + f(r_y) - f(r_x + r_y))


def choose_components(asked: int | None, width: int, examples: int) -> int:
    """How many components to keep, or why the number asked for cannot be.

    Raises:
        ValueError: more components than the width, or more than half of the rows can carry.
    """
    half = examples // 2
    if examples < 8:
        raise ValueError(f"mutual information needs at least 8 examples, came {examples}")
    if asked is None:
        # Four rows of a half per estimated component keep the variance small.
        return max(1, min(32, width, examples // 8, (half - 2) // 2))
    if not isinstance(asked, int) or not 1 <= asked <= width:
        raise ValueError(
            f"components must be an integer between 1 and the width {width}, came {asked}"
        )
    if asked > half - 2:
        raise ValueError(
            f"{asked} components need at least {2 * asked + 4} examples, came {examples}; "
            f"give more examples or ask for at most {half - 2} components"
        )
    return asked


class Gaussian:
    """Codes of every layer on both halves, and the information that any of their rows hold.

    Attributes:
        sizes: rows in each half; a draw of rows (`Draw`) has one entry per half.
        lost: rows that count for nothing in the variance, which goes as 1 / (rows - lost).
        null_rate: the floor that chance gives falls as N ** -null_rate.
        shrinkage: of the last estimate ``[L_x, L_y]``, 0 where the unbiased estimate exists.
    """

    null_rate = 1.0

    def __init__(self, x: Layers, y: Layers, wanted: Wanted, seed: int, backend: str):
        halves = permutation(x.shape.examples, seed).tensor_split(2)
        coded = [_codes(side, halves, wanted) for side in (x, y)]
        self._r = r = wanted.count
        # [half][side] -> [L, rows, r]
        self._codes = [[stacked(codes, r) for codes in half] for half in zip(*coded)]
        self._backend = backend
        self.sizes = [len(half) for half in halves]
        self.lost = 2 * r + 1
        self.shrinkage: Tensor | None = None

    def estimate(self, rows: Draw | None = None) -> Tensor:
        """``[L_x, L_y]`` float64 in nats, the mean of both halves."""
        folds = []
        for fold, (x, y) in enumerate(self._codes):
            if rows is not None:
                x, y = x[:, rows[fold][0]], y[:, rows[fold][1]]
            folds.append(self._one_half(x, y))
        nats, shrinkage = (torch.stack(v).mean(dim=0).cpu() for v in zip(*folds))
        self.shrinkage = shrinkage
        return nats

    def _one_half(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        n, r = x.shape[1], self._r
        if n > 2 * r + 1:
            raw = gaussian_information(x, y, backend=self._backend)
            return raw - gaussian_bias(n, r, r), torch.zeros_like(raw)
        return shrunk_gaussian_information(x, y)


def _codes(layers: Layers, halves: tuple[Tensor, Tensor], wanted: Wanted) -> list[list[Tensor]]:
    """Per half and layer, its rows (float64) in the components fitted on the other half.

    Each half is centred by its own mean: whitening centres again, so nothing depends on it.
    """
    coded: list[list[Tensor]] = [[], []]
    for index, states in enumerate(layers):
        name = layers.label(index)
        parts = [centre(states.index_select(0, half.to(states.device))) for half in halves]
        for held, fitted in ((0, 1), (1, 0)):
            axes = components(*parts[fitted], wanted, states, name)
            coded[held].append(times_rows(parts[held][0], axes).double())
    return coded
