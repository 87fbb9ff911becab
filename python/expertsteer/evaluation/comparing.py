"""All methods and controls through one call, each at the strength that costs the same.

Settings are chosen on the validation split, prices are kept on one half of the neutral texts, and
what is reported comes from the test split and from the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

from torch import nn

from ..calibration.calibrating import PASSES, BudgetError, Searching, checked_budget
from ..calibration.divergence import neutral_texts
from ..rfm import RFM
from ..states.same_examples import require_same_examples
from ..states.states import Captured
from ..support.numbers import setting
from ..support.progress import quietable
from ..vectors.vectors import SteeringVectors
from .comparison import PROMPT, UNSTEERED, Comparison, ComparisonRow
from .controls import random_jobs, score_of, summary, tested
from .equal_price import EqualPrice, Score, searches
from .methods import (
    METHODS,
    PAPER,
    SHUFFLED,
    Fitting,
    fit_methods,
    missing,
)
from .pair_effect import PairEffect
from .session import Job, Session


class Compared(NamedTuple):
    """A comparison with what it was made from, for whoever wants to measure more of it."""

    comparison: Comparison
    equal_price: EqualPrice
    fitting: Fitting
    fitted: dict[str, SteeringVectors]  # of every fitted method, at all of its layers
    effect_passes: int  # over the neutral texts, for the pairs whose effect was measured


@quietable
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
    the subset with the best validation score is measured on the test split. Of more than eight
    settings the best three of a rough search are calibrated. Random directions may flip their sign
    as well, which is more freedom than any fitted method has.

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


def compared(*arguments: Any, session: Session | None = None, **options: Any) -> Compared:
    """`compare`, with what it was made from, in a `Session`."""
    bound = signature(compare).bind(*arguments, **options)
    bound.apply_defaults()
    return _compared(**bound.arguments, session=session)


def _compared(
    model, expert, target, score, neutral, tokenizer, *, budget, measure, methods, vectors, random,
    prompts, prices, layers, pairs, shortlist, rfm, seed, start, batch_size, max_length,
    decoder_layers, progress, session=None,
) -> Compared:  # fmt: skip
    session, vectors = session or Session(progress=progress), dict(vectors or {})
    known = _steerable(expert, target, vectors)
    _require_counts(neutral, random, prompts, tokenizer)
    limit, least = checked_budget(budget, measure), 1 if measure == "kl" else 2
    halves = [
        neutral_texts(model, neutral[i::2], tokenizer, max_length, least) for i in (0, 1)
    ]  # chosen on, reported on
    searching = Searching(
        limit, PASSES, start, most=2, lift=2, options={"decoder_layers": decoder_layers}
    )
    equal_price = EqualPrice(
        model, score, measure, *halves, searching, batch_size, dict(prices or {})
    )
    subsets = _subsets(known, layers)
    choices = searches(len(subsets))
    unsteered = session.row(UNSTEERED, equal_price.unsteered)
    effect = PairEffect(equal_price, session.kept)
    count = len(known) if pairs is None else pairs
    fitting = Fitting(expert, target, count, rfm, seed, effect, shortlist)
    skipped, fitted = _missing(fitting, methods, vectors), {}

    def fit(name: str) -> list[SteeringVectors]:
        fitted.update(fit_methods(fitting, [name])[0])
        return [fitted[name]]

    wanted = [n for n in METHODS if n not in skipped and (methods is None or n in methods)]
    jobs = random_jobs(target, vectors, random, seed, searches(2 * len(subsets)))
    jobs += [
        Job(name, _kind(name), partial(fit, name), fitting.searched(name) + choices,
            needed=name == session.first)
        for name in wanted
    ]  # fmt: skip
    jobs += [
        Job(name, "given", lambda one=one: [one], choices, needed=name == session.first)
        for name, one in vectors.items()
    ]
    found: dict[str, ComparisonRow] = {}
    for job, row, why in session.rows(jobs, equal_price, subsets):
        if row is None:
            skipped[job.name] = why
        else:
            found[job.name] = row
    tried = [found[job.name] for job in jobs if job.kind == "random" and job.name in found]
    if not tried:
        raise BudgetError(f"budget={setting(budget)} is met by no random direction; raise it")
    rows = [found[job.name] for job in jobs if job.kind != "random" and job.name in found]
    if prompts:
        ask = partial(equal_price.prompt_row, prompts, neutral, tokenizer, budget)
        rows.append(session.row(PROMPT, ask))
    average, best = summary(tried)
    equal_price.chosen[best.name] = equal_price.chosen[max(tried, key=score_of).name]
    controls = [unsteered, average, best]
    rows = tested(rows, unsteered, best, seed)
    made = Comparison(
        (*controls, *rows), tuple(tried), skipped, budget, measure, seed, session.seconds
    )
    return Compared(made, equal_price, fitting, fitted, effect.passes)


def _missing(
    fitting: Fitting, methods: Sequence[str] | None, vectors: Mapping[str, SteeringVectors]
) -> dict[str, str]:
    """Why methods cannot be fitted; none have to be where there are vectors."""
    return {} if vectors and methods is not None and not methods else missing(fitting, methods)


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


def _kind(name: str) -> str:
    if name == SHUFFLED:
        return "control"
    return "expert" if name.startswith("expert") or name == PAPER else "own"


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
