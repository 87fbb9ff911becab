"""How sure a measured difference is: intervals, paired tests, and correction for many tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

TESTS = ("auto", "mcnemar", "permutation", "wilcoxon")
ALTERNATIVES = ("two-sided", "greater")
LEVEL = 0.05


class Interval(NamedTuple):
    """A mean with its bootstrap interval, all in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """One method against a baseline over the same items.

    Attributes:
        difference: mean of the method minus the baseline, with its paired bootstrap interval.
        p_value: of no difference; adjusted: after Holm's correction, ``None`` before it.
        test: ``"mcnemar"``, ``"permutation"`` or ``"wilcoxon"``; alternative: as asked for.
        items: how many; wins, losses: those where the method is higher, or lower.
        family: for how many tests ``adjusted`` is corrected; others: the p-values of the others,
            as far as they are known.
        open_items: where the baseline is below 1, the most that can be won; ``None`` unless all
            values lie in [0, 1].
        seed: of the bootstrap and of the permutations.
    """

    difference: Interval
    p_value: float
    test: str
    alternative: str
    items: int
    wins: int
    losses: int
    seed: int
    adjusted: float | None = None
    family: int = 1
    open_items: int | None = None
    others: tuple[float, ...] = ()

    def significant(self, level: float = LEVEL) -> bool:
        """Whether the two surely differ at this level after correction."""
        return (self.p_value if self.adjusted is None else self.adjusted) < level

    def beats(self, level: float = LEVEL) -> bool:
        """Whether the method is higher, and surely so at this level after correction."""
        return self.difference.mean > 0 and self.significant(level)

    def corrected_level(self, level: float = LEVEL) -> float:
        """What ``p_value`` must stay below to be significant at this level after correction.

        Holm holds the smallest of m p-values to ``level / m``, the next to ``level / (m - 1)``
        and so on, up to the first that fails. Where r of the *other* tests pass in that way, this
        one is significant exactly where its p-value is below ``level / (m - r)``.

        Raises:
            ValueError: a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, came {level!r}")
        passed = 0
        for p in sorted(self.others):
            if p * (self.family - passed) >= level:
                break
            passed += 1
        return level / (self.family - passed)

    def least_wins(self, level: float = LEVEL) -> int | None:
        """How many items must be won, with none lost, for the test to be significant.

        Of the ``2**k`` equally likely ways in which k items can differ, one is as good as k wins,
        and one more as bad. So no p-value of McNemar's test or of permutations over k items that
        differ is below ``2**(1 - k)`` (``2**-k`` for ``"greater"``), and the answer is the least
        k for which that is below ``corrected_level``: 6 at .05, 10 if that is corrected for 20
        tests of which no other passes. ``None`` for Wilcoxon's test, which approximates.
        """
        if self.test == "wilcoxon":
            return None
        sides = 1 if self.alternative == "greater" else 2
        limit, wins = self.corrected_level(level), 1
        while sides * 0.5**wins >= limit:
            wins += 1
        return wins

    def can_tell(self, level: float = LEVEL) -> bool:
        """Whether the test could find the method better, or did find a difference.

        It could not where the baseline is so near the ceiling of its scores, or the items are so
        few, that a method which wins every item that the baseline leaves open and loses none
        still stays short of significance: ``open_items < least_wins(level)``. Of scores that are
        not in [0, 1] no ceiling is known, so the answer is yes.
        """
        least = self.least_wins(level)
        if self.significant(level) or self.open_items is None or least is None:
            return True
        return self.open_items >= least

    def to_dict(self) -> dict[str, Any]:
        """Json values, without ``others``: those tests stand beside this one."""
        told = asdict(self) | {"difference": self.difference._asdict()}
        del told["others"]
        return told


def bootstrap_interval(
    values: Sequence[float] | Tensor, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of N independent values with its percentile-bootstrap interval.

    Values that are all equal have an interval of width zero: the bootstrap knows only the sample.

    Raises:
        ValueError: fewer than two values, non-finite ones, a confidence outside (0, 1).
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(
            "values must be at least two finite numbers in one dimension, came shape "
            f"{sample.shape} with {int((~np.isfinite(sample)).sum())} non-finite"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, came {confidence}")
    result = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(sample.mean()), float(low), float(high))


def paired_difference(
    values: Sequence[float] | Tensor, baseline: Sequence[float] | Tensor, **options: Any
) -> Interval:
    """Mean of ``values - baseline`` over the same N items, with its bootstrap interval.

    Pairing removes what the items have in common (a hard question is hard for both), so this
    interval is narrower than two separate ones suggest. Options as in `bootstrap_interval`.

    Raises:
        ValueError: different numbers of items.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"values and baseline must be over the same items, came shapes {a.shape} and {b.shape}"
        )
    return bootstrap_interval(a - b, **options)


def paired_test(
    values: Sequence[float] | Tensor,
    baseline: Sequence[float] | Tensor,
    test: str = "auto",
    *,
    alternative: str = "two-sided",
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """Test whether a method differs from a baseline on the same N items.

    Args:
        values, baseline: ``[N]``, larger is better; right or wrong is 1 or 0.
        test: ``"mcnemar"``, for values of 0 and 1: the exact binomial test of the items that only
            one of the two gets right. ``"permutation"``: the mean difference against that under
            swaps of the two values of an item, all of them where there are at most ``resamples``.
            ``"wilcoxon"``: signed ranks, which outliers move less. ``"auto"`` takes McNemar's for
            values of 0 and 1, else permutations.
        alternative: ``"two-sided"`` or ``"greater"`` (the method is higher).
        confidence: of the interval of the difference.
        seed: of the bootstrap and the permutations.

    Raises:
        ValueError: an unknown test, different numbers of items, fewer than two, non-finite values,
            McNemar's test for other values than 0 and 1.
    """
    if test not in TESTS:
        raise ValueError(f"test must be one of {TESTS}, came {test!r}")
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative must be one of {ALTERNATIVES}, came {alternative!r}")
    if type(resamples) is not int or resamples < 99:
        raise ValueError(f"resamples must be a whole number of at least 99, came {resamples!r}")
    difference = paired_difference(values, baseline, confidence=confidence, seed=seed)
    a, b = (np.asarray(x, dtype=np.float64) for x in (values, baseline))
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    if test == "mcnemar" and not binary:
        raise ValueError(
            "test='mcnemar' needs values of 0 and 1 (wrong and right), came others; use "
            "test='permutation'"
        )
    if test == "auto":
        test = "mcnemar" if binary else "permutation"
    wins, losses = int((a > b).sum()), int((a < b).sum())
    if wins + losses == 0:
        p = 1.0
    elif test == "mcnemar":
        p = stats.binomtest(wins, wins + losses, 0.5, alternative=alternative).pvalue
    elif test == "wilcoxon":
        p = stats.wilcoxon(a - b, alternative=alternative).pvalue
    else:
        p = _permutation(a - b, alternative, resamples, seed)
    bounded = all(bool(((x >= 0) & (x <= 1)).all()) for x in (a, b))
    room = int((b < 1).sum()) if bounded else None
    return PairedTest(
        difference, float(p), test, alternative, len(a), wins, losses, seed, open_items=room
    )


def holm(p_values: Sequence[float], tried: int | None = None) -> list[float]:
    """Holm's step-down correction: the chance of any false finding stays below the level.

    Args:
        p_values: of the tests that are reported.
        tried: how many were made in all, where not all are reported; the others are counted as if
            theirs were the larger ones, which is never too lenient to those reported.

    Returns:
        Adjusted p-values in the order given, at most 1.

    Raises:
        ValueError: none, values outside [0, 1], fewer tried than reported.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be numbers between 0 and 1, came {p_values!r}")
    count = len(p) if tried is None else tried
    if type(count) is not int or count < len(p):
        raise ValueError(f"tried must be at least the {len(p)} tests reported, came {tried!r}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((count - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def corrected(tests: Mapping[Any, PairedTest], tried: int | None = None) -> dict[Any, PairedTest]:
    """The same tests with their p-values corrected as one family (see `holm`)."""
    if not tests:
        return {}
    raw = [test.p_value for test in tests.values()]
    family = len(tests) if tried is None else tried
    return {
        name: replace(test, adjusted=p, family=family, others=(*raw[:i], *raw[i + 1 :]))
        for i, ((name, test), p) in enumerate(zip(tests.items(), holm(raw, tried)))
    }


def _permutation(differences: np.ndarray, alternative: str, resamples: int, seed: int) -> float:
    # Items without a difference are the same under every swap.
    moved = differences[differences != 0]
    if len(moved) == 1:  # two swaps, which scipy refuses to count
        return 0.5 if alternative == "greater" and moved[0] > 0 else 1.0
    return stats.permutation_test(
        (moved, np.zeros_like(moved)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        batch=1000,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    ).pvalue
