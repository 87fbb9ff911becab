"""All methods and controls through one call, each at the strength that costs the same.

Settings are chosen on the validation split, prices are kept on one half of the neutral texts, and
what is reported comes from the test split and from the other half.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import nn

from ..calibration.calibrating import PASSES, BudgetError, Searching, checked_budget
from ..calibration.divergence import neutral_texts
from ..rfm import RFM
from ..states.same_examples import require_same_examples
from ..states.states import Captured
from ..support.numbers import setting
from ..support.progress import progress as shown
from ..vectors.vectors import SteeringVectors
from .comparison import PROMPT, UNSTEERED, Comparison, ComparisonRow
from .equal_price import EqualPrice, Score
from .methods import (
    DEFAULT,
    METHODS,
    SHUFFLED,
    Fitting,
    fit_methods,
    random_directions,
    random_like,
)
from .statistics import bootstrap_interval, corrected, paired_test


class Compared(NamedTuple):
    """A comparison with what it was made from, for whoever wants to measure more of it."""

    comparison: Comparison
    equal_price: EqualPrice
    fitting: Fitting
    fitted: dict[str, SteeringVectors]  # of every fitted method, at all of its layers
    effect_passes: int  # over the neutral texts, for the pairs whose effect was measured


def compare(
    model: nn.Module,
    expert: Captured | None,
    target: Captured | None,
    score: Score,
    neutral: Sequence[Any],
    tokenizer: Any = None,
    *,
    budget: float = 0.1,
    measure: str = "kl",
    methods: Sequence[str] | None = None,
    vectors: Mapping[str, SteeringVectors] | None = None,
    random: int = 5,
    prompts: Sequence[str] = (),
    prices: Mapping[str, Callable[[str], float]] | None = None,
    layers: Sequence[Sequence[int]] | None = None,
    pairs: int | None = None,
    shortlist: int | None = None,
    rfm: RFM | None = None,
    seed: int = 0,
    start: float | None = None,
    batch_size: int = 64,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Measure steering beside every control, all at the same divergence on neutral text.

    For each method and each subset of its layers, `calibrate` finds the strength at the budget;
    the subset with the best validation score is measured on the test split. Random directions may
    flip their sign as well, which is more freedom than any fitted method has.

    Args:
        model: the target, not steered; expert, target: the captures, over one contrast set,
            in memory or on disk (`StoredStates`).
            Without the expert's the target's own vectors are fitted, without both none are.
        score: ``score(split, prompt) -> [N]`` of the model as it is now, larger is better, on the
            items of ``"validation"`` or ``"test"``, with ``prompt`` put before each. Right and
            wrong as 1 and 0 get an exact test. ``[N, 2]`` breaks ties of the first column's mean
            by that of the second.
        neutral: texts (or token ids) that steering should leave alone, at least two; every second
            one is kept for the reported divergence.
        tokenizer: needed for texts and prompts.
        budget, measure: see `calibrate`.
        methods: some of ``evaluation.methods.METHODS``, by default all that can be fitted.
        vectors: vectors at hand by name, as methods beside the fitted ones. Random directions
            have their layers, norms and scales where no capture of the target is given.
        random: how many random directions, at least 1.
        prompts: candidates for a prompt before the text, the cheap alternative to steering; put
            before it as they are.
        prices: further costs by name, ``price(prompt) -> float`` of the model as it is now, such as
            the loss on other text behind the prompt.
        layers: subsets of the target's layers to try, by default the runs of neighbouring layers
            (of more than four, every single layer); all layers that a method has vectors for are
            tried as well unless subsets are given.
        pairs: layer pairs of the expert's methods, by default one for every target layer.
        shortlist: how many pairs have their effect measured for the validated ones, by default
            three for each pair, at most 24.
        rfm: see `fit_vectors`; start, batch_size, max_length: see `calibrate`.
        decoder_layers: see `attach`.
        seed: of every random choice; random direction i is drawn from ``1000 * seed + i``.
        progress: show bars on a terminal.

    Returns:
        A `Comparison`. P-values against the unsteered model and the best random direction (best on
        the test split) are corrected as one family over all methods.

    Raises:
        ValueError: too few neutral texts, a score of the wrong shape, an unknown method, or what
            the fits and `calibrate` raise.
    """
    return _compared(**locals()).comparison


def compared(*arguments: Any, **options: Any) -> Compared:
    """`compare`, with what it was made from."""
    bound = signature(compare).bind(*arguments, **options)
    bound.apply_defaults()
    return _compared(**bound.arguments)


def _compared(
    model, expert, target, score, neutral, tokenizer, *, budget, measure, methods, vectors, random,
    prompts, prices, layers, pairs, shortlist, rfm, seed, start, batch_size, max_length,
    decoder_layers, progress,
) -> Compared:  # fmt: skip
    started, vectors = time.perf_counter(), dict(vectors or {})
    known = _steerable(expert, target, vectors)
    _require_counts(neutral, random, prompts, tokenizer)
    limit, least = checked_budget(budget, measure), 1 if measure == "kl" else 2
    halves = [
        neutral_texts(model, neutral[i::2], tokenizer, max_length, least) for i in (0, 1)
    ]  # chosen on, reported on
    searching = Searching(limit, PASSES, start, options={"decoder_layers": decoder_layers})
    equal_price = EqualPrice(
        model, score, measure, *halves, searching, batch_size, dict(prices or {})
    )
    subsets, effect_passes = _subsets(known, layers), 0
    before_steering = equal_price.rank("validation")

    def effect(vectors: SteeringVectors) -> float:
        nonlocal effect_passes
        before = equal_price.calibrating.passes
        chosen = equal_price.choose([vectors], [vectors.layers])
        effect_passes += equal_price.calibrating.passes - before
        if chosen is None:  # no strength meets the budget
            return 0.0
        gain, tie = (a - b for a, b in zip(chosen.rank, before_steering))
        return gain + 1e-6 * tie

    count = len(known) if pairs is None else pairs
    fitting = Fitting(expert, target, count, rfm, seed, effect, shortlist)
    fitted, skipped = fit_methods(fitting, methods)
    rows, tried = [], []
    for i in shown(range(random), "random directions", progress):
        drawn = _random(target, vectors, 1000 * seed + i)
        row = equal_price.row(f"random direction {i}", "random", [drawn, -drawn], subsets)
        tried += [] if row is None else [row]
    if not tried:
        raise BudgetError(f"budget={setting(budget)} is met by no random direction; raise it")
    for name, one in shown((fitted | vectors).items(), "methods", progress):
        row = equal_price.row(name, "given" if name in vectors else _kind(name), [one], subsets)
        if row is None:
            skipped[name] = "no strength meets the budget at any layers"
        else:
            rows.append(row)
    if prompts:
        rows.append(equal_price.prompt_row(prompts, neutral, tokenizer, budget))
    average, best = _summary(tried)
    equal_price.chosen[best.name] = equal_price.chosen[max(tried, key=_score).name]
    controls = [equal_price.unsteered(), average, best]
    tested = _tested(rows, controls[0], best, seed)
    seconds = time.perf_counter() - started
    made = Comparison((*controls, *tested), tuple(tried), skipped, budget, measure, seed, seconds)
    return Compared(made, equal_price, fitting, fitted, effect_passes)


def _steerable(
    expert: Captured | None, target: Captured | None, vectors: dict[str, SteeringVectors]
) -> tuple[int, ...]:
    """The layers that can be tried."""
    if expert is not None and target is not None:
        require_same_examples(expert, target)
    if target is None and (expert is not None or not vectors):
        raise ValueError(
            "target must be the target's capture, or vectors must be given; without them there "
            "is nothing to steer with"
        )
    taken = sorted(set(vectors) & {*METHODS, UNSTEERED, PROMPT})
    if taken or not all(isinstance(v, SteeringVectors) for v in vectors.values()):
        raise ValueError(
            "vectors must be SteeringVectors by names that no other row has, came "
            f"{taken or list(vectors)}"
        )
    layers = {layer for one in vectors.values() for layer in one.layers}
    return tuple(sorted(layers)) if target is None else target.layers


def _random(
    target: Captured | None, vectors: dict[str, SteeringVectors], seed: int
) -> SteeringVectors:
    if target is not None:
        return random_directions(target, seed)
    widest = max(vectors.values(), key=lambda one: len(one.layers))
    return random_like(widest, seed)


def _score(row: ComparisonRow) -> float:
    return row.score.mean


def _summary(tried: list[ComparisonRow]) -> list[ComparisonRow]:
    """Random directions together: their mean over every item, and the best on the test split."""
    rows = [row.values for row in tried]
    values = torch.tensor(rows, dtype=torch.float64, device="cpu").mean(dim=0)
    count = len(tried)

    def mean(numbers: Sequence[float]) -> float:
        return sum(numbers) / count

    average = ComparisonRow(
        f"random directions, mean of {count}",
        "random",
        bootstrap_interval(values),
        tuple(values.tolist()),
        mean([row.divergence for row in tried]),
        prices={n: mean([row.prices[n] for row in tried]) for n in tried[0].prices},
        validation=mean([row.validation for row in tried]),
        tried=sum(row.tried for row in tried),
        passes=sum(row.passes for row in tried),
    )
    best = max(tried, key=_score)
    return [average, replace(best, name=f"random directions, best of {count}")]


def _tested(
    rows: list[ComparisonRow], unsteered: ComparisonRow, best: ComparisonRow, seed: int
) -> list[ComparisonRow]:
    controls = (unsteered, best)
    tests = {
        (row.name, control.name): paired_test(row.values, control.values, seed=seed)
        for row in rows
        for control in controls
    }
    tests = corrected(tests)
    return [
        replace(row, against={c.name: tests[row.name, c.name] for c in controls}) for row in rows
    ]


def _kind(name: str) -> str:
    if name == SHUFFLED:
        return "control"
    return "expert" if name.startswith("expert") or name == DEFAULT else "own"


def _subsets(layers: tuple[int, ...], given: Any) -> list[tuple[int, ...]]:
    """Layers to try; an empty entry stands for all that a method has."""
    if given is not None:
        subsets = [tuple(subset) for subset in given]
        if not subsets or any(not s or not set(s) <= set(layers) for s in subsets):
            raise ValueError(
                f"layers must be non-empty lists of the captured target layers {layers}, came "
                f"{given!r}"
            )
        return subsets
    if len(layers) > 4:
        return [*((layer,) for layer in layers), ()]
    count = len(layers)
    return [*(layers[i:j] for i in range(count) for j in range(i + 1, count + 1)), ()]


def _require_counts(neutral: Any, random: int, prompts: Any, tokenizer: Any) -> None:
    if isinstance(neutral, (str, bytes)) or len(neutral) < 2:
        raise ValueError(
            "neutral must be a list of at least two texts, one to calibrate on and one to report "
            f"on, came {neutral!r}"
        )
    if type(random) is not int or random < 1:
        raise ValueError(f"random must be a whole number of at least 1, came {random!r}")
    if isinstance(prompts, str) or not all(isinstance(p, str) and p for p in prompts):
        raise ValueError(f"prompts must be a list of non-empty texts, came {prompts!r}")
    if prompts and (tokenizer is None or not all(isinstance(text, str) for text in neutral)):
        raise ValueError("prompts need neutral texts and a tokenizer, came token ids or none")
