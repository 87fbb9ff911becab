"""The verdict says where a control leaves too little room to be beaten, by exact counts."""

import json

import numpy as np
import pytest
from scipy import stats

from expertsteer.evaluation.statistics import corrected, holm, paired_test
from expertsteer.evaluation.verdict import verdict


def against_open(open_items, items=40, won=0, at_open=0.0, **options):
    """A control with so many open items, and a method that wins some of them."""
    control = [at_open] * open_items + [1.0] * (items - open_items)
    method = [1.0] * won + control[won:]
    return paired_test(method, control, **options)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("level", [0.05, 0.0025, 0.2])
def test_the_least_wins_are_those_of_the_exact_test(alternative, level):
    test = against_open(20, alternative=alternative)
    p = [stats.binomtest(k, k, 0.5, alternative=alternative).pvalue for k in range(1, 15)]
    assert test.least_wins(level) == 1 + next(i for i, value in enumerate(p) if value < level)


def test_the_least_wins_by_hand():
    assert against_open(20).least_wins() == 6  # 2 / 2^5 = .0625, 2 / 2^6 = .031
    assert against_open(20, alternative="greater").least_wins() == 5
    family = corrected({i: against_open(20) for i in range(20)})
    assert {test.least_wins() for test in family.values()} == {10}  # .0025: 2 / 2^10 = .00195
    assert against_open(20, test="wilcoxon").least_wins() is None
    with pytest.raises(ValueError, match="level must lie between 0 and 1, came 0"):
        family[0].least_wins(0)


@pytest.mark.parametrize("at_open", [0.0, 0.5])  # McNemar's test, and permutations
@pytest.mark.parametrize("passing", [0, 3])
def test_a_test_can_tell_exactly_where_the_best_method_would_be_found(at_open, passing):
    others = {i: against_open(30, won=25 if i < passing else 1) for i in range(5)}
    seen = set()
    for room in range(14):
        blank, best = (
            corrected(others | {"x": against_open(room, won=won, at_open=at_open)})["x"]
            for won in (0, room)
        )
        assert blank.open_items == room and not blank.beats()
        assert blank.can_tell() == best.beats()
        seen.add(blank.can_tell())
    assert seen == {True, False}


def test_the_corrected_level_is_holms_for_this_test_among_the_others():
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        values = (generator.random((6, 60)) < generator.uniform(0.3, 0.95, (6, 1))).astype(float)
        base = (generator.random(60) < 0.4).astype(float)
        tests = corrected({i: paired_test(v, base) for i, v in enumerate(values)}, tried=8)
        raw = [test.p_value for test in tests.values()]
        for i, test in tests.items():
            limit = test.corrected_level()
            assert test.significant() == (test.p_value < limit)
            for p in (0.999 * limit, 1.001 * limit):  # what any other p-value would have met
                meets = holm([*raw[:i], p, *raw[i + 1 :]], 8)[i] < 0.05
                assert meets == (p < limit)
            outcomes.add(test.significant())
    assert outcomes == {True, False}


def test_the_verdict_gives_the_figures_where_the_control_is_at_its_ceiling():
    near = corrected({"unsteered": against_open(30, won=12), "best": against_open(4, 200, won=3)})
    sentence = verdict("ours", near)
    assert sentence.startswith("ours does NOT beat best (+0.015 ")
    for words in ("cannot tell", "on all but 4 of 200 items", "at least 6", "p < 0.05", "2 tests"):
        assert words in sentence
    assert "unsteered" not in sentence
    full = verdict("ours", {"best": against_open(0)})
    assert "on all but 0 of 40 items; nothing is left to win" in full and "correction" not in full


def test_a_verdict_with_room_or_with_a_finding_is_as_before():
    assert "cannot tell" not in verdict("ours", {"best": against_open(6, won=5)})
    assert "cannot tell" in verdict("ours", {"best": against_open(5, won=5)})
    worse = paired_test([0.0] * 12 + [1.0] * 28, [1.0] * 40)
    assert worse.open_items == 0 and worse.can_tell()  # it did tell: the method is worse
    assert "cannot tell" not in verdict("ours", {"best": worse})
    unbounded = paired_test([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.5])
    assert unbounded.open_items is None and unbounded.can_tell()


def test_json_values_hold_the_room_and_not_the_family():
    document = corrected({i: against_open(7, won=i) for i in range(3)})[1].to_dict()
    assert document["open_items"] == 7 and document["family"] == 3 and "others" not in document
    assert json.loads(json.dumps(document, allow_nan=False))["open_items"] == 7
