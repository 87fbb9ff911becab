"""The methods of the study. One line here is one more row of its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import expertsteer as es
from benchmarks.real.lab import BASE, Context, of_layers
from benchmarks.real.labels import expert_log_odds, surest, true_rows
from benchmarks.real.tasks.neutral import NEUTRAL
from expertsteer.evaluation.comparison import ComparisonRow
from expertsteer.evaluation.methods import random_directions
from expertsteer.pairing.layer_pairs import LayerPairing
from expertsteer.pipeline.effects import AtHand
from expertsteer.states.states import HiddenStates
from expertsteer.support.tensors import permutation
from expertsteer.vectors.vectors import SteeringVectors

Vectors = Callable[[Context], SteeringVectors]
Variants = Callable[[Context], list[SteeringVectors]]
Rows = Callable[[Context], list[ComparisonRow]]
RANDOM = 5


def at_same_depth(experts: Sequence[int], targets: Sequence[int], last: int) -> LayerPairing:
    """The expert layer that is as far up as the target layer, relative to the depths."""
    return LayerPairing(
        tuple(
            (experts[round(layer / last * (len(experts) - 1))], layer, float("nan"))
            for layer in targets
        )
    )


def by_information(context: Context, rule: str) -> LayerPairing:
    axes = {"expert_layers": context.expert.layers, "target_layers": context.target.layers}
    return es.pair_layers(context.information, len(context.target.layers), rule, **axes)


def same_depth(context: Context) -> LayerPairing:
    return at_same_depth(context.expert.layers, context.target.layers, context.last_layer)


PAIRINGS: dict[str, Callable[[Context], LayerPairing]] = {
    "lowest": partial(by_information, rule="lowest"),
    "highest": partial(by_information, rule="highest"),
    "same depth": same_depth,
}
ALIGNMENTS: dict[str, dict[str, Any]] = {
    "Procrustes": {},  # the default
    "ridge": {"method": "ridge"},
    "low rank": {"method": "low_rank"},
}


def shuffled(states: HiddenStates, seed: int) -> HiddenStates:
    return states.relabelled(states.labels[permutation(len(states), seed)])


def own(context: Context, method: str, labels: str = "true") -> SteeringVectors:
    """The target's own vectors at the layers that are tried."""
    target, same = context.target, LayerPairing.same(context.target.layers)
    identity = es.align(target, target, "identity", pairing=same)
    if labels == "shuffled":
        target = shuffled(target, context.seed)
    return context.fitting.vectors(identity, same, method, expert=target, target=target)


def experts(
    context: Context, alignment: str, pairing: str, method: str = "rfm", labels: str = "true"
) -> SteeringVectors:
    """The expert's, by an alignment and a pairing of the tables above."""
    pairs = PAIRINGS[pairing](context)
    expert, target = context.expert, context.target
    aligned = es.align(expert, target, **ALIGNMENTS[alignment], pairing=pairs)
    if labels == "shuffled":
        expert, target = (shuffled(states, context.seed) for states in (expert, target))
    return context.fitting.vectors(aligned, pairs, method, expert=expert, target=target)


def pipeline(context: Context, target: HiddenStates, **settings: Any) -> SteeringVectors:
    """What `ExpertSteer` gives on a capture of the target, whose pairs are told with the cell."""
    at_hand = AtHand(
        *context.lab.model,
        context.ready.task.contrast(context.seed),
        neutral=NEUTRAL[::2],  # those that strengths are found on; prices are told of the others
        budget=context.lab.budget,
    )
    fit = es.ExpertSteer(health=False, seed=context.seed, progress=False, **settings)
    vectors = fit.fit_states(context.expert, target, at_hand=at_hand)
    context.figures = {"pairs": [list(pair[:2]) for pair in fit.pairing_]}
    return vectors


def together(context: Context, rule: str) -> list[ComparisonRow]:
    """All layers of a default fit at once, as it steers: validation has nothing to choose."""
    vectors = pipeline(context, context.whole_target, rule=rule)
    price = context.ready.equal_price
    row = price.row(f"default fit, {rule}", "given", [vectors], [vectors.layers])
    return [] if row is None else [row]


def by_effect(context: Context) -> SteeringVectors:
    """The expert layers that the default rule chooses for the layers that are tried."""
    return pipeline(context, context.target, pairs=len(context.target.layers))


def two_models(context: Context) -> list[SteeringVectors]:
    """What the expert's states of the texts have and the smaller model's do not tell."""
    expert, base = context.expert, context.states(BASE)
    target, pairs = unlabelled(context.target), same_depth(context)
    return _both_ways(es.contrast_models(expert, base, target, pairs, method="pca"))


def late_less_early(context: Context) -> list[SteeringVectors]:
    """The upper half of the expert's layers against its lower half."""
    layers, target = context.expert.layers, unlabelled(context.target)
    early, late = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    pairs = at_same_depth(late, target.layers, context.last_layer)
    states = (of_layers(context.expert, part) for part in (late, early))
    return _both_ways(es.contrast_models(*states, target, pairs))


def unlabelled(states: HiddenStates) -> HiddenStates:
    """Without the pairs, which would tell which texts differ in their class alone."""
    return replace(states, pairs=None)


def _both_ways(vectors: SteeringVectors) -> list[SteeringVectors]:
    """No label says which end is which, so validation does, as for random directions."""
    return [vectors, -vectors]


def averaged(context: Context) -> SteeringVectors:
    """Both Qwens in anchor coordinates, by the low-rank map."""
    experts = [context.expert, context.states(BASE)]
    mean = es.average_experts(experts, seed=context.seed)
    pairs = at_same_depth(mean.layers, context.target.layers, context.last_layer)
    aligned = es.align(mean, context.target, "low_rank", pairing=pairs)
    return context.fitting.vectors(aligned, pairs, "rfm", expert=mean)


def labelled(context: Context, by: str, count: int) -> SteeringVectors:
    """The target's own vectors from some labels only: true ones or the expert's."""
    whole = context.target
    if by == "truth":
        target = whole.take(true_rows(whole, count, context.seed))
    else:
        rows, labels = surest(expert_log_odds(context), count)
        right = (labels == whole.labels[rows]).double().mean()
        context.figures = {"labels right": round(float(right), 3), "labels": len(rows)}
        target = replace(whole.take(rows).relabelled(labels), pairs=None)
    same = LayerPairing.same(target.layers)
    identity = es.align(target, target, "identity", pairing=same)
    return context.fitting.vectors(identity, same, "rfm", expert=target, target=target)


def unsteered(context: Context) -> list[ComparisonRow]:
    return [context.ready.equal_price.unsteered()]


def at_random(context: Context) -> list[ComparisonRow]:
    """Every direction may flip its sign, which is more freedom than a fitted one has."""
    ready, rows = context.ready, []
    for i in range(RANDOM):
        drawn = random_directions(context.target, 1000 * context.seed + i)
        name = f"random direction {i}"
        row = ready.equal_price.row(name, "random", [drawn, -drawn], ready.subsets)
        rows += [] if row is None else [row]
    return rows


def few_shots(context: Context) -> list[ComparisonRow]:
    """Rows of the fitting set before every item; what that costs is told, and not held down."""
    ready, prompts = context.ready, [context.ready.task.shots(context.seed)]
    price = ready.equal_price
    return [price.prompt_row(prompts, list(NEUTRAL), ready.tokenizer, ready.budget)]


# The same for every seed of fitting sets: measured once.
ONCE: dict[str, Rows] = {"unsteered": unsteered, "random directions": at_random}
WHOLE: dict[str, Rows] = {
    "default fit": partial(together, rule="effect"),
    "default fit, lowest pairs (as it was)": partial(together, rule="lowest"),
}
UNLABELLED: dict[str, Variants] = {
    "expert less a smaller model, no labels": two_models,
    "expert's late less early layers, no labels": late_less_early,
}
PROMPTS: dict[str, Rows] = {"few-shot prompt": few_shots}
METHODS: dict[str, Vectors] = {
    "own mean difference": partial(own, method="mean_difference"),
    "expert, Procrustes, lowest": partial(experts, alignment="Procrustes", pairing="lowest"),
    "own RFM": partial(own, method="rfm"),
    "expert, Procrustes, same depth": partial(
        experts, alignment="Procrustes", pairing="same depth"
    ),
    "own, shuffled labels": partial(own, method="rfm", labels="shuffled"),
    "expert, shuffled labels": partial(
        experts, alignment="Procrustes", pairing="lowest", labels="shuffled"
    ),
    "expert, Procrustes, highest": partial(experts, alignment="Procrustes", pairing="highest"),
    "expert, ridge, same depth": partial(experts, alignment="ridge", pairing="same depth"),
    "expert, low rank, same depth": partial(experts, alignment="low rank", pairing="same depth"),
    "expert, ridge, lowest": partial(experts, alignment="ridge", pairing="lowest"),
    "expert, ridge, highest": partial(experts, alignment="ridge", pairing="highest"),
    "expert, Procrustes, same depth, mean difference": partial(
        experts, alignment="Procrustes", pairing="same depth", method="mean_difference"
    ),
    "expert, Procrustes, effect": by_effect,
    "two experts by anchors, low rank, same depth": averaged,
    "own RFM, 16 true labels": partial(labelled, by="truth", count=16),
    "own RFM, 60 true labels": partial(labelled, by="truth", count=60),
    "own RFM, 16 labels of the expert": partial(labelled, by="expert", count=16),
    "own RFM, 60 labels of the expert": partial(labelled, by="expert", count=60),
    "own RFM, 240 labels of the expert": partial(labelled, by="expert", count=240),
}
ALL = (*ONCE, *WHOLE, *METHODS, *UNLABELLED, *PROMPTS)


def rows_of(context: Context, name: str) -> list[ComparisonRow]:
    """A method's rows: one, of random directions one each, none where nothing keeps the budget."""
    if name in METHODS or name in UNLABELLED:
        price, ready = context.ready.equal_price, context.ready
        variants = [METHODS[name](context)] if name in METHODS else UNLABELLED[name](context)
        row = price.row(name, "given", variants, ready.subsets)
        return [] if row is None else [row]
    return (ONCE | WHOLE | PROMPTS)[name](context)
