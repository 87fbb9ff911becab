"""The search for the largest place within a budget, on prices whose crossing is known."""

import math

import pytest

from expertsteer.calibration.bracket import Bracket, search

PRICES = {
    "square": lambda s: 3 * s**2,
    "levels off": lambda s: 2 * (1 - math.exp(-(s**2))),
    "steep": lambda s: s**2 + 5 * s**6,
    "linear": lambda s: 0.4 * s,
    "tiny": lambda s: 1e-4 * s**2,
    "huge": lambda s: 1e5 * s**2,
    "not finite": lambda s: 1e-3 * s**2 if s < 1.3 else math.inf,
}


def found_for(price, budget=0.1, places=11, **options):
    """What a search finds, and the rounds it took."""
    rounds = []

    def several(asked):
        rounds.append(list(asked))
        return [price(s) for s in asked]

    bounds = {"start": 0.2, "smallest": 1e-4, "largest": 64.0, "per_round": 3, "tolerance": 0.02}
    left = lambda: places - sum(map(len, rounds))  # noqa: E731
    return search(several, budget, affordable=left, **(bounds | options)), rounds


@pytest.mark.parametrize("name", PRICES)
def test_the_place_meets_the_budget_and_a_tenth_more_does_not(name):
    price = PRICES[name]
    found, rounds = found_for(price)
    assert sum(map(len, rounds)) <= 11 and all(len(r) <= 3 for r in rounds)
    assert price(found.low) <= 0.1 < price(found.high)
    assert price(1.1 * found.low) > 0.1
    assert found.points == tuple(sorted((s, price(s)) for r in rounds for s in r))
    assert not found.falls() and not found.returns()


def test_a_smooth_price_needs_few_places():
    found, rounds = found_for(PRICES["square"])
    assert found.ratio <= 1.02 and len(rounds) <= 3


def test_between_two_measured_places_the_crossing_is_that_of_a_power():
    points = ((0.5, 0.3 * 0.5**2), (2.0, 0.3 * 2.0**2))
    assert Bracket(points, 0.3).crossing == pytest.approx(1.0)
    assert Bracket(points, 3.0).crossing == 2.0  # within the budget everywhere
    assert Bracket(points, 0.01).crossing is None  # nowhere


@pytest.mark.parametrize("places", [3, 5, 8])
def test_no_more_places_are_measured_than_can_be_paid(places):
    _, rounds = found_for(PRICES["levels off"], places=places)
    assert sum(map(len, rounds)) <= places


def test_a_price_that_never_reaches_the_budget_ends_at_the_largest_place():
    found, _ = found_for(lambda s: 1e-9 * s**2)
    assert found.high is None and found.low == 64.0


def test_a_price_over_the_budget_everywhere_has_no_place():
    found, rounds = found_for(lambda s: 1 + s)
    assert found.low is None and rounds[-1][0] == 1e-4


def test_nothing_outside_the_bounds_is_measured():
    for price in (*PRICES.values(), lambda s: 1 + s, lambda s: 0.0):
        _, rounds = found_for(price, smallest=0.05, largest=3.0)
        assert all(0.05 <= s <= 3.0 for r in rounds for s in r)


def test_the_first_crossing_is_found_and_a_dip_behind_it_is_told():
    found, _ = found_for(lambda s: 0.5 if 0.1 < s < 0.7 else 0.01 * s)
    assert found.high <= 0.11 or found.ratio > 1.02
    assert found.low < 0.1 and found.returns()


def test_a_price_that_falls_within_the_bracket_is_told():
    found, _ = found_for(lambda s: 0.09 - 0.05 * s if s < 1 else s)
    assert found.falls()
    found, _ = found_for(PRICES["square"])
    assert not found.falls()
