"""What the vectors of a layer pair gain on validation at the budget."""

from __future__ import annotations

from functools import cached_property

from ..vectors.vectors import SteeringVectors
from .equal_price import EqualPrice
from .kept import Kept


class PairEffect:
    """Called with the vectors of one pair; ``passes`` counts those over the neutral texts."""

    def __init__(self, equal_price: EqualPrice, kept: Kept):
        self.equal_price, self.kept, self.passes = equal_price, kept, 0

    @cached_property
    def before(self) -> tuple[float, float]:
        return self.equal_price.rank("validation")

    def __call__(self, vectors: SteeringVectors) -> float:
        known = self.kept.get("effect", vectors.fingerprint)
        if known is None:
            known = self.kept.put("effect", vectors.fingerprint, self._measured(vectors))
        value, passes = known
        self.passes += passes
        return value

    def _measured(self, vectors: SteeringVectors) -> tuple[float, int]:
        before = self.equal_price.calibrating.passes
        chosen = self.equal_price.choose([vectors], [vectors.layers])
        passes = self.equal_price.calibrating.passes - before
        if chosen is None:  # no strength meets the budget
            return 0.0, passes
        gain, tie = (a - b for a, b in zip(chosen.rank, self.before))
        return gain + 1e-6 * tie, passes
