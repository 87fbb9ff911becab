"""Paired tests, corrections and intervals, against scipy, cases by hand and simulation."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats

from expertsteer.evaluation.statistics import (
    PairedTest,
    bootstrap_interval,
    corrected,
    holm,
    paired_difference,
    paired_test,
)
from expertsteer.evaluation.verdict import verdict


def right_and_wrong(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return first, second


def test_mcnemar_counts_only_items_that_one_of_the_two_gets_right():
    # 8 against 1: P(at most 1 of 9) + P(at least 8 of 9) = 2 (1 + 9) / 512
    test = paired_test(*right_and_wrong(30, 8, 1, 20))
    assert test.test == "mcnemar" and (test.wins, test.losses, test.items) == (8, 1, 59)
    assert test.p_value == pytest.approx(20 / 512)
    assert test.difference.mean == pytest.approx(7 / 59)
    assert paired_test(*right_and_wrong(0, 8, 1, 0)).p_value == pytest.approx(20 / 512)
    greater = paired_test(*right_and_wrong(30, 8, 1, 20), alternative="greater")
    assert greater.p_value == pytest.approx(10 / 512)


def test_permutations_of_few_items_are_all_counted():
    values, baseline = [3.0, 2.5, 1.0, 4.0, 0.5], [1.0, 2.0, 1.5, 1.0, 0.0]
    d = np.subtract(values, baseline)
    swaps = [np.dot(signs, d) for signs in itertools.product((1, -1), repeat=5)]
    greater = np.mean([s >= d.sum() - 1e-12 for s in swaps])
    test = paired_test(values, baseline, alternative="greater")
    assert test.test == "permutation" and test.p_value == pytest.approx(greater)
    assert paired_test(values, baseline).p_value == pytest.approx(min(1, 2 * greater))


def test_permutations_agree_with_the_t_test_where_that_is_exact():
    generator = np.random.default_rng(0)
    baseline = generator.normal(size=80)
    values = baseline + generator.normal(0.2, 1, 80)
    expected = stats.ttest_rel(values, baseline).pvalue
    assert paired_test(values, baseline).p_value == pytest.approx(expected, abs=0.02)


def test_wilcoxon_is_scipys():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 25))
    assert paired_test(a, b, "wilcoxon").p_value == stats.wilcoxon(a, b).pvalue


@pytest.mark.parametrize("test", ["mcnemar", "permutation", "wilcoxon"])
def test_no_difference_is_no_finding(test):
    result = paired_test([1, 0, 1], [1, 0, 1], test)
    assert result.p_value == 1.0 and not result.beats() and result.difference == (0, 0, 0)


def test_a_test_is_seeded_and_its_seed_recorded():
    a, b = torch.rand(2, 40)
    first, again = (paired_test(a, b, seed=5) for _ in range(2))
    assert first == again and first.seed == 5
    assert json.loads(json.dumps(first.to_dict()))["difference"]["mean"] == first.difference.mean


@pytest.mark.parametrize("test", ["permutation", "mcnemar"])
def test_where_nothing_differs_few_tests_find_something(test):
    """At level 0.05, in at most 5 % of simulated samples, with room for three standard errors."""
    generator, found = np.random.default_rng(2), 0
    for seed in range(200):
        difficulty = generator.normal(size=40)
        a, b = difficulty + generator.normal(0, 0.5, (2, 40))
        if test == "mcnemar":
            a, b = a > 0, b > 0
        found += paired_test(a, b, test, resamples=199, seed=seed).p_value < 0.05
    assert 0 < found <= 19


def test_intervals_of_paired_differences_cover_the_truth():
    generator, hits = np.random.default_rng(3), 0
    for seed in range(200):
        shared = generator.normal(0, 3, 60)
        a, b = shared + generator.normal(0.4, 1, 60), shared + generator.normal(0, 1, 60)
        low_high = paired_difference(a, b, resamples=300, seed=seed)
        hits += low_high.low <= 0.4 <= low_high.high
    # 95 % of 200 is 190, with a standard deviation of 3; percentile intervals run a little short.
    assert 178 <= hits <= 199


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4 3 2 1, never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.01, 0.02], tried=10) == pytest.approx([0.1, 0.18])


def test_holm_lies_between_no_correction_and_bonferroni():
    p = np.random.default_rng(0).uniform(0, 0.2, 12)
    adjusted = np.array(holm(p))
    assert (adjusted >= p).all() and (adjusted <= np.minimum(12 * p, 1) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_holm_of_a_part_is_never_more_lenient_than_of_the_whole():
    generator = np.random.default_rng(1)
    for _ in range(50):
        p = generator.uniform(0, 0.1, 8)
        whole = holm(p)
        for i, of_part in enumerate(holm(p[:3], tried=8)):
            assert of_part >= whole[i] - 1e-15


def test_holm_keeps_the_chance_of_any_false_finding():
    generator = np.random.default_rng(2)
    false = sum(min(holm(generator.uniform(size=10))) < 0.05 for _ in range(1000))
    assert 25 <= false <= 72  # 5 % of 1000 is 50, with a standard deviation of 7


def test_correction_keeps_names_and_counts_the_family():
    tests = {name: paired_test(*right_and_wrong(5, 9, n, 5)) for n, name in enumerate("ab")}
    result = corrected(tests, tried=6)
    assert list(result) == ["a", "b"] and {t.family for t in result.values()} == {6}
    expected = holm([t.p_value for t in tests.values()], 6)
    assert [t.adjusted for t in result.values()] == expected
    assert corrected({}) == {}


def test_the_verdict_says_what_does_not_hold():
    better = paired_test(*right_and_wrong(10, 20, 1, 10))
    worse = paired_test(*right_and_wrong(10, 3, 2, 10))
    assert "beats its controls" in verdict("ours", {"unsteered": better})
    sentence = verdict("ours", {"unsteered": better, "random": worse})
    assert "does NOT beat random" in sentence and "unsteered" not in sentence
    lower = paired_test(*right_and_wrong(10, 1, 20, 10))
    assert lower.p_value < 0.05 and "NOT" in verdict("ours", {"random": lower})
    weak = corrected({"x": paired_test(*right_and_wrong(10, 9, 1, 10))}, tried=20)
    assert weak["x"].p_value < 0.05 < weak["x"].adjusted
    assert "does NOT beat x" in verdict("ours", weak) and "adjusted p" in verdict("ours", weak)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: paired_test([1, 0], [1, 0], "t"), "test must be one of"),
        (lambda: paired_test([1, 0], [1, 0], alternative="less"), "alternative"),
        (lambda: paired_test([1, 0], [1, 0], resamples=5), "resamples"),
        (lambda: paired_test([1, 0], [1, 0, 1]), "same items"),
        (lambda: paired_test([0.5, 0], [1, 0], "mcnemar"), "values of 0 and 1"),
        (lambda: paired_test([float("nan"), 0], [1, 0]), "non-finite"),
        (lambda: holm([]), "p_values"),
        (lambda: holm([1.5]), "between 0 and 1"),
        (lambda: holm([0.1, 0.2], tried=1), "at least the 2"),
        (lambda: verdict("x", {}), "at least one test"),
        (lambda: bootstrap_interval([1.0]), "at least two"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_beating_needs_the_right_sign_and_a_small_p_value():
    base = paired_test(*right_and_wrong(0, 9, 0, 0))
    assert isinstance(base, PairedTest) and base.beats() and not base.beats(level=1e-9)


@pytest.mark.parametrize(
    ("change", "alternative", "p"),
    [(2, "two-sided", 1.0), (2, "greater", 0.5), (-2, "greater", 1.0)],
)
def test_one_item_that_moved_is_one_of_two_swaps(change, alternative, p):
    baseline = [1.5, 2.5, 4.0, 5.0]
    values = [*baseline[:3], baseline[3] + change]
    assert paired_test(values, baseline, "permutation", alternative=alternative).p_value == p


def test_intervals_cover_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low_high = bootstrap_interval(generator.normal(0.3, 1.0, 60), resamples=300, seed=seed)
        hits += low_high.low <= 0.3 <= low_high.high
    # 95 % of 200 is 190, with a standard deviation of 3; percentile intervals run a little short.
    assert 178 <= hits <= 199


def test_intervals_are_seeded_and_bracket_the_mean():
    values = torch.rand(40)
    first, again = bootstrap_interval(values, seed=3), bootstrap_interval(values, seed=3)
    assert first == again
    assert first.low < first.mean < first.high
    assert first.mean == pytest.approx(values.double().mean().item())
    assert bootstrap_interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_pairing_takes_out_what_the_items_share():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 5, 50)
    after, before = difficulty + 1 + generator.normal(0, 0.1, 50), difficulty
    difference = paired_difference(after, before)
    assert difference.low > 0.9 and difference.high < 1.1
    assert difference.high - difference.low < 0.1
    separate = bootstrap_interval(after)
    assert separate.high - separate.low > 10 * (difference.high - difference.low)


@pytest.mark.parametrize(
    ("values", "options", "named"),
    [
        ([1.0], {}, "at least two"),
        ([[1.0, 2.0]], {}, "one dimension"),
        ([1.0, float("nan")], {}, "1 non-finite"),
        ([1.0, 2.0], {"confidence": 95}, "confidence"),
    ],
)
def test_values_no_interval_can_be_made_of(values, options, named):
    with pytest.raises(ValueError, match=named):
        bootstrap_interval(values, **options)
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0, 2.0], [1.0])
