"""How far apart a model's own states are at each layer: the unit in which a first strength is told.

The norm of a state is none: where one dimension holds most of it, and holds it for every text,
displacements far below the norm already change every prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vectors.vectors import SteeringVectors

UNKNOWN = 0.2  # the first strength where the states do not differ, so that nothing is told
_TOKENS = 256  # sampled at each layer; medians need no more to tell a factor of two
_GRID = math.sqrt(2)  # starts are powers of it: rounding in the states does not move them
_DEVIATIONS = 4.0  # that cost about a nat, or less, see `Spread.start`


class Spread:
    """Medians over tokens of the states at each layer, and of their distance from them.

    Used as a context: while it lasts, states are sampled from what the layers put out.

    Args:
        layers: the decoder's, counted from 0.
        tokens: how many there will be in all; at most 256 of them, evenly spaced, are kept.
    """

    def __init__(self, layers: Sequence[nn.Module], tokens: int):
        self._layers, self._every = layers, -(-tokens // _TOKENS)
        self._seen, self._length = 0, 0
        self._rows = self._places = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._kept: dict[int, list[Tensor]] = {}
        self._medians: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Spread:
        self._handles = [
            layer.register_forward_hook(self._keeper(i)) for i, layer in enumerate(self._layers)
        ]
        return self

    def __exit__(self, error: Any, *rest: Any) -> None:
        for handle in self._handles:
            handle.remove()
        for layer, parts in self._kept.items() if error is None else ():
            states = torch.cat(parts)
            centre = states.median(dim=0).values
            self._medians[layer] = centre, (states - centre).abs().median(dim=0).values
        self._kept.clear()

    def expect(self, lengths: Sequence[int]) -> None:
        """Rows of so many tokens, padded on the right, are read next."""
        places = [(b, t) for b, length in enumerate(lengths) for t in range(length)]
        first = -self._seen % self._every
        self._seen += len(places)
        chosen = torch.tensor(places[first :: self._every], dtype=torch.int64, device="cpu")
        self._rows, self._places = chosen.view(-1, 2).unbind(dim=1)
        self._length = max(lengths)

    def start(self, vectors: SteeringVectors, operation: str, budget: float) -> float:
        """A strength of about the right size for a budget in nats per token.

        A displacement ``d`` is ``sqrt(sum_j (d_j / m_j)^2)`` deviations long, with the median
        deviation ``m_j`` of the states in dimension j, or the median of these over the dimensions
        where that is more: a dimension of enormous states does not shorten the rest, and one that
        hardly moves does not lengthen it. The displacements of several layers add up, and the layer
        decides at which their sum is longest. Four such deviations cost about a nat or less, and
        divergences grow as the square of a small strength.

        Args:
            operation: of `ops.steer`; ``"remove"`` displaces by the states' own component.
        """
        length, moved = 0.0, torch.zeros(vectors.width, dtype=torch.float64, device="cpu")
        for layer in vectors.layers:
            if layer in self._medians:
                moved += self._moved(vectors.displacement(layer), layer, operation)
                length = max(self._deviations(moved, layer), length)
        if not 0 < length < math.inf:
            return UNKNOWN
        wanted = _DEVIATIONS * math.sqrt(budget) / length
        return _GRID ** round(math.log(wanted, _GRID)) if wanted > 0 else UNKNOWN

    def _moved(self, displacement: Tensor, layer: int, operation: str) -> Tensor:
        """By how much strength 1 moves the states of a layer."""
        centre, deviation = self._medians[layer]
        displacement = displacement.to(centre)
        if operation != "remove":
            return displacement
        unit = displacement / displacement.norm()
        return unit * math.hypot(float(unit @ centre), float((unit * deviation).norm()))

    def _deviations(self, moved: Tensor, layer: int) -> float:
        """How many deviations of a layer's states that is; NaN where they do not differ."""
        deviation = self._medians[layer][1]
        varied = deviation[deviation > 0]
        if not len(varied):
            return math.nan
        return float((moved / deviation.clamp_min(varied.median())).norm())

    def _keeper(self, layer: int):
        def keep(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            if not isinstance(hidden, Tensor) or hidden.ndim != 3 or not len(self._rows):
                return
            before = hidden.shape[1] - self._length  # soft prompts stand before the text
            rows, places = (i.to(hidden.device) for i in (self._rows, self._places + before))
            picked = hidden[rows, places].to("cpu", torch.float64)
            self._kept.setdefault(layer, []).append(picked)

        return keep
