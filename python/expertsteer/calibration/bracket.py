"""The largest place at which a rising price keeps within its budget, several places at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Price = Callable[[list[float]], Sequence[float]]

STEP = 4.0  # ratio of neighbouring places in the first round
ROUNDING = 1e-6  # in the unit of the price; it decides nothing


@dataclass(frozen=True)
class Bracket:
    """What a search found.

    Attributes:
        points: ``(place, price)``, places rising.
        low: the largest place up to which every measured price keeps the budget, ``None`` if the
            smallest one does not; high: the next measured place, over the budget, ``None`` if
            no measured price exceeds it.
    """

    points: tuple[tuple[float, float], ...]
    budget: float

    @property
    def high(self) -> float | None:
        return next((place for place, price in self.points if price > self.budget), None)

    @property
    def low(self) -> float | None:
        end = self.high
        return max((p for p, _ in self.points if end is None or p < end), default=None)

    @property
    def ratio(self) -> float:
        """``high / low``, infinite where an end is missing."""
        return math.inf if self.low is None or self.high is None else self.high / self.low

    @property
    def crossing(self) -> float | None:
        """About where the price meets the budget, between ``low`` and ``high``; not measured.

        ``low`` where no price exceeds the budget, ``None`` where all do.
        """
        if self.low is None or self.high is None:
            return self.low
        return math.exp(_crossing(self)[0])

    def falls(self) -> list[tuple[float, float]]:
        """Neighbouring places up to ``high`` between which the price falls, rounding apart."""
        end = math.inf if self.high is None else self.high
        inside = [point for point in self.points if point[0] <= end]
        return [
            (a, b)
            for (a, before), (b, after) in zip(inside, inside[1:])
            if after < before - 1e-3 * abs(before) - ROUNDING
        ]

    def returns(self) -> list[float]:
        """Places beyond ``high`` whose price is within the budget again."""
        end = math.inf if self.high is None else self.high
        return [place for place, price in self.points if place > end and price <= self.budget]


def search(
    price: Price,
    budget: float,
    *,
    start: float,
    smallest: float,
    largest: float,
    affordable: Callable[[], int],
    per_round: int,
    tolerance: float,
) -> Bracket:
    """Narrow the bracket around the budget until it is ``1 + tolerance`` wide.

    Small displacements cost as their square, so between two places the price is taken for a power
    of the place (a line in logarithms), and beyond them for a square. Only measured prices decide:
    a price that is no power costs more rounds and never a wrong answer.

    Args:
        price: prices of several places, in one call; infinite where there is none.
        start: the middle of the first round.
        smallest, largest: nothing outside is measured.
        affordable: how many places may still be measured in one more call.
        per_round: at most so many in one call.
    """
    first = [start * STEP ** (i - (per_round - 1) // 2) for i in range(per_round)]
    places = sorted({min(max(p, smallest), largest) for p in first})
    points: dict[float, float] = {}
    while places:
        points.update(zip(places, price(places)))
        found = Bracket(tuple(sorted(points.items())), budget)
        count = min(per_round, affordable())
        if found.ratio <= 1 + tolerance or count < 1:
            break
        last = affordable() - count < 2
        wanted = _next(found, count, last, smallest, largest, tolerance)
        places = sorted({p for p in wanted if p not in points})
    return found


def _next(
    found: Bracket, count: int, last: bool, smallest: float, largest: float, tolerance: float
) -> list[float]:
    points = dict(found.points)
    if found.low is None:
        guess = found.high * _square_root(found.budget, points[found.high])
        # A price that has levelled off makes the guess too high: the steps get longer downwards.
        wanted = [guess * f for f in (1 / 1.25, 1.25, 1 / STEP, 1 / STEP**3)[:count]]
        wanted = wanted[:-1] + [smallest] if last else wanted
        return [max(min(p, found.high / 1.01), smallest) for p in wanted if found.high > smallest]
    if found.high is None:
        if found.low >= largest:
            return []
        guess = found.low * max(_square_root(found.budget, points[found.low]), 1.01)
        wanted = [guess * f for f in (1.25, 1 / 1.25, STEP, STEP**2)[:count]]
        if guess > STEP * found.low:  # far away, and prices often rise faster than a square
            wanted = [guess, math.sqrt(guess * found.low), guess * STEP][:count]
        return [min(p, largest) for p in wanted if p > found.low] or [largest]
    low, high = math.log(found.low), math.log(found.high)
    width, aim = high - low, math.log1p(tolerance)
    middle, doubt = _crossing(found)
    # Two places straddle the guess as widely apart as it is in doubt.
    if width > math.log(STEP):  # too far apart for either curve
        doubt = max(doubt, width / 6)
    reach = max(doubt, width**2 / 24, 0.4 * aim)
    middle = min(max(middle, low + aim / 4), high - aim / 4)
    if count == 1:  # the side of the guess that brings the farther end near
        side = -1 if middle - low > high - middle else 1
        return [math.exp(middle + side * 0.4 * aim)]
    # Never nearer to an end than to the guess: that end is measured already.
    below, above = max(middle - reach, (low + middle) / 2), min(middle + reach, (middle + high) / 2)
    return [math.exp(below), math.exp(above)]


def _crossing(found: Bracket) -> tuple[float, float]:
    """The logarithm of the place where the price meets the budget, and how doubtful it is.

    The line through the ends of the bracket tells the place; how far a parabola through one more
    point is from it tells the doubt.
    """
    low, high = math.log(found.low), math.log(found.high)
    points = dict(found.points)
    share = _share(points[found.low], points[found.high], found.budget)
    line = low + (high - low) * share
    usable = [(s, p) for s, p in found.points if 0 < p < math.inf]
    ends = [(s, p) for s, p in usable if s in (found.low, found.high)]
    third = [point for point in usable if point not in ends]
    if len(ends) < 2 or not third:
        return line, (high - low) / 8
    wanted = math.log(found.budget)
    third = min(third, key=lambda point: abs(math.log(point[1]) - wanted))
    curved = _lagrange([(math.log(p), math.log(s)) for s, p in (*ends, third)], wanted)
    if not low < curved < high:
        return line, (high - low) / 4
    return line, abs(curved - line)


def _lagrange(points: Sequence[tuple[float, float]], x: float) -> float:
    """The polynomial through the points, at x; infinite where two share their place."""
    total = 0.0
    for i, (a, value) in enumerate(points):
        for j, (b, _) in enumerate(points):
            if i != j:
                if a == b:
                    return math.inf
                value *= (x - b) / (a - b)
        total += value
    return total


def _square_root(budget: float, price: float) -> float:
    """By how much to scale a place for the budget, were the price a square; within 1/256..256."""
    if not 0 < price < math.inf:
        return 1 / 16 if price > 0 else 16.0
    return min(max(math.sqrt(budget / price), 1 / 256), 256.0)


def _share(low: float, high: float, budget: float) -> float:
    """Where between two places, in logarithms, a power law from ``low`` to ``high`` meets."""
    if not math.isfinite(high):
        return 0.25
    if low <= 0:  # no power law leads through it: a square from above
        return 0.5
    return (math.log(budget) - math.log(low)) / (math.log(high) - math.log(low))
