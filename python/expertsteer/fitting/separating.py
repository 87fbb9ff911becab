"""Which layers of a model tell the classes apart, on rows that a fit did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rfm import RFM
from ..states.states import Captured
from ..support.progress import progress
from .halves import Halves, draw_halves, refit

CUTS = 2  # two fits each
MOST_ROWS = 600  # examples beyond which a set is thinned: an AUC from 300 rows is known to .03


@dataclass(frozen=True)
class Separating:
    """How well one layer tells the classes apart.

    Attributes:
        auc: of fits on halves of the examples, on the other halves; ``None`` where the states
            hold nothing to find, or the examples are too few for halves.
        stability: mean cosine between the directions of two halves.
    """

    auc: float | None = None
    stability: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: of layers that separate alike, the one whose direction depends least
        on the rows it was learned from."""
        return self.auc or 0.0, self.stability or 0.0


def separating(
    capture: Captured,
    layers: Sequence[int],
    method: str,
    rfm: RFM | None = None,
    *,
    cuts: int = CUTS,
    most_rows: int = MOST_ROWS,
    seed: int = 0,
    bar: bool = False,
) -> list[Separating]:
    """For each of some layers of a capture, how well it tells the classes apart.

    As the health check measures it, at a lower price: ``2 cuts`` fits on at most half of
    ``most_rows`` examples, as one batch per layer, and one AGOP for an RFM. One layer is held at
    a time.

    Args:
        method: of the fit, as in `fit_vectors`.
    """
    halves = draw_halves(capture.labels, capture.pairs, cuts, most_rows, seed)
    if halves is None:
        return [Separating() for _ in layers]
    machine = rfm.unfitted() if rfm else RFM()
    machine.iters = min(1, machine.iters)
    return [
        _of_layer(capture.layer(layer), capture.labels, halves, method, machine)
        for layer in progress(layers, "layers that tell the classes apart", bar)
    ]


def _of_layer(states: Tensor, labels: Tensor, halves: Halves, method: str, rfm: RFM) -> Separating:
    if bool((states == states[0]).all()):
        return Separating()
    states = states.float() if states.dtype.itemsize < 4 else states
    try:
        found = refit(states, labels, halves, method, rfm)
    except ValueError:  # the rows of some half coincide
        return Separating()
    return Separating(found["auc"], found["stability"])
