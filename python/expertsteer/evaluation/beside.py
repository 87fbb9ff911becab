"""What an evaluation tells beside its comparison: items, pairs, health and other tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp
from typing import Any

from torch import nn

from ..alignment.aligning import align
from ..calibration.divergence import neutral_texts
from ..fitting.checking import health
from ..fitting.health_report import HEALTH_KEY
from ..models.scoring import behind, log_probabilities
from ..pairing.layer_pairs import LayerPairing
from ..tasks import TaskOnModel
from ..vectors.vectors import SteeringVectors
from .comparing import Compared
from .evaluation import Answered
from .harness import evaluate_lm_eval
from .methods import PAIRED, PAPER


def answered_items(
    on: TaskOnModel, made: Compared, name: str, count: int
) -> tuple[list[Answered], dict[str, int]]:
    """Test items before and after, and how many of all have which outcome."""
    row, before = made.comparison.row(name), on.examples("test")
    if row.prompt is not None:
        after = on.examples("test", row.prompt)
    else:
        with made.equal_price.steered(made.equal_price.chosen[name]):
            after = on.examples("test")
    rows = [
        Answered(b.prompt, b.expected, b.text, a.text, b.score, a.score)
        for b, a in zip(before, after)
    ]
    outcomes = Counter(row.outcome for row in rows)
    left, taken = dict(outcomes), Counter()
    while sum(taken.values()) < min(count, len(rows)):  # one of each in turn, as long as there are
        for outcome in ("win", "loss", "tie"):
            if taken[outcome] < left.get(outcome, 0) and sum(taken.values()) < count:
                taken[outcome] += 1
    kept, seen = [], Counter()
    for row in rows:
        if seen[row.outcome] < taken[row.outcome]:
            kept.append(row)
        seen[row.outcome] += 1
    return kept, {outcome: outcomes[outcome] for outcome in ("win", "loss", "tie")}


def measured_pairing(made: Compared, name: str) -> LayerPairing | None:
    """The method's pairs, with every effect that was measured of any."""
    pairings = made.fitting.pairings
    pairing = pairings.get(name, pairings.get(PAPER))
    effects = tuple(dict.fromkeys(e for p in pairings.values() for e in p.effects))
    return pairing if pairing is None else replace(pairing, effects=effects)


def fit_health(
    made: Compared, name: str, given: Mapping[str, SteeringVectors], progress: bool
) -> dict[str, Any]:
    """Of the fit behind the method, as json values; empty where nothing is known of it."""
    if name in given:
        return dict(given[name].metadata.get(HEALTH_KEY, {}))
    if name not in (PAPER, *PAIRED):
        return {}
    fitting = made.fitting
    expert, target = fitting.expert, fitting.target
    return health(
        expert,
        target,
        align(expert, target),
        fitting.pairings[name],
        made.fitted[name],
        rfm=fitting.rfm,
        seed=fitting.seed,
        progress=progress,
    ).to_dict()


def neutral_price(
    model: nn.Module, tokenizer: Any, neutral: Sequence[Any], on: TaskOnModel, longest: int | None
) -> dict[str, Callable[[str], float]]:
    """The loss on the neutral texts that are reported on, in nats per token of all of them."""
    given = list(neutral[1::2])
    kept = neutral_texts(model, given, tokenizer, longest, 2)
    rows, texts = [list(row) for row in kept.rows], kept.of(given)

    def loss(prompt: str) -> float:
        scored = behind(tokenizer, rows, texts, prompt) if prompt else [(ids, 1) for ids in rows]
        total = log_probabilities(model, scored, on.batch_size)
        return -float(total.sum()) / sum(len(ids) - start for ids, start in scored)

    return {"neutral loss": loss}


def perplexities(made: Compared) -> dict[str, dict[str, float]]:
    """Of every row, on the task's test texts and on the neutral ones."""
    return {
        row.name: {"task": exp(-row.score.mean), "neutral": exp(row.prices["neutral loss"])}
        for row in made.comparison.rows
    }


def harness_rows(
    made: Compared,
    name: str,
    tokenizer: Any,
    options: Mapping[str, Any] | None,
    seed: int,
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, Any], ...]:
    """The harness's tasks under the method's setting; none for a prompt, which is no steering."""
    if options is None or name not in made.equal_price.chosen:
        return ()
    chosen = made.equal_price.chosen[name]
    options = {"seed": seed, "batch_size": batch_size, "progress": progress} | dict(options)
    model = made.equal_price.model
    options |= {"vectors": chosen.vectors, "strength": chosen.strength}
    rows = evaluate_lm_eval(model, tokenizer, **made.equal_price.searching.options, **options)
    return tuple(row.to_dict() for row in rows)
