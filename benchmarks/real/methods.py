"""The methods of the study. One line here is one more row of its tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import expertsteer as es
from benchmarks.real.lab import Context
from benchmarks.real.tasks.neutral import NEUTRAL
from expertsteer.evaluation.comparison import ComparisonRow
from expertsteer.evaluation.methods import random_directions
from expertsteer.pairing.layer_pairs import LayerPairing
from expertsteer.states.states import HiddenStates
from expertsteer.support.tensors import permutation
from expertsteer.vectors.vectors import SteeringVectors

Vectors = Callable[[Context], SteeringVectors]
Rows = Callable[[Context], list[ComparisonRow]]
RANDOM = 5


def by_information(context: Context, rule: str) -> LayerPairing:
    axes = {"expert_layers": context.expert.layers, "target_layers": context.target.layers}
    return es.pair_layers(context.information, len(context.target.layers), rule, **axes)


def same_depth(context: Context) -> LayerPairing:
    """The expert layer that is as far up as the target layer, relative to the depths."""
    last = context.lab.model[0].config.num_hidden_layers - 1
    experts = context.expert.layers
    return LayerPairing(
        tuple(
            (experts[round(layer / last * (len(experts) - 1))], layer, float("nan"))
            for layer in context.target.layers
        )
    )


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
}
ALL = (*ONCE, *METHODS, *PROMPTS)


def rows_of(context: Context, name: str) -> list[ComparisonRow]:
    """A method's rows: one, of random directions one each, none where nothing keeps the budget."""
    if name in METHODS:
        price, ready = context.ready.equal_price, context.ready
        row = price.row(name, "given", [METHODS[name](context)], ready.subsets)
        return [] if row is None else [row]
    return (ONCE | PROMPTS)[name](context)
