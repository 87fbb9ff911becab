"""The matrix-based Renyi estimator of order 2: one Gram matrix per layer, one product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.information import reference
from ..support.numbers import setting, short
from .layers import Layers
from .sampling import Draw


def require_whole(components: int | None, backend: str) -> None:
    """Raise ``ValueError`` for options that this estimator does not have."""
    if components is not None:
        raise ValueError(
            f"components must be left out for estimator='renyi2', which takes the states whole; "
            f"came {components}"
        )
    if backend not in ("auto", "reference"):
        raise ValueError(
            f"backend must be 'auto' or 'reference' for estimator='renyi2', came {backend!r}"
        )


class Renyi2:
    """Squared Gram matrices of every layer, and the information that any of their rows hold.

    Attributes:
        sizes, lost, null_rate: see `_gaussian.Gaussian`; bandwidths stay those of all rows.

    Raises:
        ValueError: the matrices would take more than ``memory`` GiB.
    """

    null_rate, lost = 1.0, 0

    def __init__(self, x: Layers, y: Layers, memory: float):
        n = x.shape.examples
        needed = 4 * (x.shape.layers + y.shape.layers) * n**2 / 2**30
        if needed > memory:
            raise ValueError(
                f"memory must allow the {short(float(needed), 3)} GiB of kernel matrices that {n} "
                f"examples take, came {setting(memory)}; raise it, give fewer examples, or take "
                "another estimator"
            )
        self._grams = [_grams(side) for side in (x, y)]
        self.sizes = [n]

    def estimate(self, rows: Draw | None = None) -> Tensor:
        """``[L_x, L_y]`` float64 in nats."""
        x, y = self._grams
        if rows is None:
            return reference.renyi2_information(x, y).cpu()
        chosen_x, chosen_y = rows[0]
        if not torch.equal(chosen_x, torch.arange(x.shape[1], device="cpu")):
            x = x[:, chosen_x[:, None], chosen_x]
        # One layer of y after the other: a second copy of all would double the memory.
        columns = [
            reference.renyi2_information(x, gram[chosen_y[:, None], chosen_y][None]) for gram in y
        ]
        return torch.cat(columns, dim=1).cpu()


def _grams(layers: Layers) -> Tensor:
    n = layers.shape.examples
    grams: Tensor | None = None
    for index, states in enumerate(layers):
        try:
            gram = reference.squared_gaussian_gram(states)
        except ValueError as error:
            raise ValueError(f"{layers.label(index)} {error}") from error
        if grams is None:
            grams = gram.new_empty(layers.shape.layers, n, n, dtype=torch.float32)
        grams[index] = gram
    return grams
