"""All methods and controls through one call, each at the strength that costs the same.

Settings are chosen on the validation split, prices are kept on one half of the neutral texts, and
what is reported comes from the test split and from the other half.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ._equal_price import Bench, Score
from ._neutral import neutral_texts
from ._progress import progress as shown
from .artifacts import HiddenStates, require_same_examples
from .baselines import DEFAULT, SHUFFLED, Fitting, fit_methods, random_directions
from .calibrate import PASSES, BudgetError, Searching, checked_budget
from .comparison import Comparison, ComparisonRow
from .rfm import RFM
from .statistics import bootstrap_interval, corrected, paired_test
from .vectors import SteeringVectors


def compare(
    model: nn.Module,
    expert: HiddenStates,
    target: HiddenStates,
    score: Score,
    neutral: Sequence[Any],
    tokenizer: Any = None,
    *,
    budget: float = 0.1,
    measure: str = "kl",
    methods: Sequence[str] | None = None,
    random: int = 5,
    prompts: Sequence[str] = (),
    prices: Mapping[str, Callable[[str], float]] | None = None,
    layers: Sequence[Sequence[int]] | None = None,
    pairs: int | None = None,
    rfm: RFM | None = None,
    seed: int = 0,
    start: float = 0.2,
    batch_size: int = 64,
    max_length: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Measure steering beside every control, all at the same divergence on neutral text.

    For each method and each subset of its layers, `calibrate` finds the strength at the budget;
    the subset with the best validation score is measured on the test split. Random directions may
    flip their sign as well, which is more freedom than any fitted method has.

    Args:
        model: the target, not steered; expert, target: the captures, over one contrast set.
        score: ``score(split, prompt) -> [N]`` of the model as it is now, larger is better, on the
            items of ``"validation"`` or ``"test"``, with ``prompt`` put before each. Right and
            wrong as 1 and 0 get an exact test. ``[N, 2]`` breaks ties of the first column's mean
            by that of the second.
        neutral: texts (or token ids) that steering should leave alone, at least two; every second
            one is kept for the reported divergence.
        tokenizer: needed for texts and prompts.
        budget, measure: see `calibrate`.
        methods: some of `baselines.METHODS`, by default all that can be fitted.
        random: how many random directions, at least 1.
        prompts: candidates for a prompt before the text, the cheap alternative to steering; put
            before it as they are.
        prices: further costs by name, ``price(prompt) -> float`` of the model as it is now, such as
            the loss on other text behind the prompt.
        layers: subsets of the target's layers to try, by default the runs of neighbouring layers
            (of more than four, every single layer); all layers that a method has vectors for are
            tried as well unless subsets are given.
        pairs: layer pairs of the expert's methods, by default one for every target layer.
        rfm: see `fit_vectors`; start, batch_size, max_length: see `calibrate`.
        seed: of every random choice; random direction i is drawn from ``1000 * seed + i``.
        progress: show bars on a terminal.

    Returns:
        A `Comparison`. P-values against the unsteered model and the best random direction (best on
        the test split) are corrected as one family over all methods.

    Raises:
        ValueError: too few neutral texts, a score of the wrong shape, an unknown method, or what
            the fits and `calibrate` raise.
    """
    started = time.perf_counter()
    require_same_examples(expert, target)
    _require_counts(neutral, random, prompts, tokenizer)
    limit, least = checked_budget(budget, measure), 1 if measure == "kl" else 2
    halves = [
        neutral_texts(model, neutral[i::2], tokenizer, max_length, least) for i in (0, 1)
    ]  # chosen on, reported on
    searching = Searching(limit, PASSES, start)
    bench = Bench(model, score, measure, *halves, searching, batch_size, dict(prices or {}))
    subsets = _subsets(target.layers, layers)

    def effect(vectors: SteeringVectors) -> float:
        chosen = bench.choose([vectors], [vectors.layers])
        return float("-inf") if chosen is None else chosen.rank[0] + 1e-6 * chosen.rank[1]

    count = len(target.layers) if pairs is None else pairs
    fitting = Fitting(expert, target, count, rfm, seed, effect)
    fitted, skipped = fit_methods(fitting, methods)
    drawn = [random_directions(target, 1000 * seed + i) for i in range(random)]
    rows, tried = [], []
    for i, vectors in shown(list(enumerate(drawn)), "random directions", progress):
        row = bench.row(f"random direction {i}", "random", [vectors, -vectors], subsets)
        tried += [] if row is None else [row]
    if not tried:
        raise BudgetError(f"budget={budget:g} is met by no random direction; raise it")
    for name, vectors in shown(fitted.items(), "methods", progress):
        row = bench.row(name, _kind(name), [vectors], subsets)
        if row is None:
            skipped[name] = "no strength meets the budget at any layers"
        else:
            rows.append(row)
    if prompts:
        rows.append(bench.prompt_row(prompts, neutral, tokenizer, budget))
    controls = [bench.unsteered(), *_summary(tried)]
    tested = _tested(rows, controls[0], controls[-1], seed)
    seconds = time.perf_counter() - started
    return Comparison((*controls, *tested), tuple(tried), skipped, budget, measure, seed, seconds)


def _summary(tried: list[ComparisonRow]) -> list[ComparisonRow]:
    """Random directions together: their mean over every item, and the best on the test split."""
    values = torch.tensor([row.values for row in tried], dtype=torch.float64).mean(dim=0)
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
    best = max(tried, key=lambda row: row.score.mean)
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
