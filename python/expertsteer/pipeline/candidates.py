"""Layer pairs by what they do: experts that tell the classes apart, targets by measured effect.

Everything is fitted without the rows it is judged on; the fit that follows uses all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..alignment.alignment import Alignment
from ..fitting.holdout import LEAST_PER_CLASS, split
from ..fitting.separating import Separating, separating
from ..pairing.layer_pairs import LayerPairing, MutualInformation
from ..pairing.rules import Effect, pair_layers
from ..rfm import RFM, auc
from ..states.states import Captured
from ..support.numbers import setting, short
from ..support.ranks import Ranks
from ..support.telling import tell
from ..support.tensors import permutation
from ..vectors.vectors import SteeringVectors
from .effects import LEAST_PAIRS, AtHand, effects_of, pairs_of_texts
from .over_processes import vectors_over

EXPERTS = 2  # layers that are tried at every target layer
TARGETS = 12  # layers that are tried, or three for each pair where that is more
FEW = 4  # pairs, where their number was not given
WEAK = 0.5  # of the largest effect: pairs below it are left out then
HELD_OUT = 0.25  # of the examples, from the fits of the candidates
MOST_ROWS = 1000  # that these are fitted on

MEASURED = "log-probability of positive over negative text, steered minus unsteered"
_NONE = (
    "no layer pair that was tried moves held-out texts towards the positive side: the largest "
    "effect is {largest} nats at budget {budget}; expect nothing of these vectors, and look at the "
    "examples and at what the target tells apart by itself (health)"
)
SEPARATION = "AUC of the target's states along the vector"


@dataclass(frozen=True)
class Fitting:
    """How vectors are fitted: ``alignment`` goes to `align`, the rest to `fit_vectors`."""

    alignment: dict[str, Any]
    direction: str
    rfm: RFM | None
    validation: float
    seed: int

    def over(
        self, ranks: Ranks, expert: Captured, target: Captured, pairing: LayerPairing
    ) -> tuple[Alignment, SteeringVectors]:
        return vectors_over(
            ranks,
            expert,
            target,
            pairing,
            self.alignment,
            self.direction,
            rfm=self.rfm,
            validation=self.validation,
            seed=self.seed,
        )


def paired(
    ranks: Ranks,
    information: MutualInformation,
    expert: Captured,
    target: Captured,
    k: int | None,
    rule: str,
    effect: Effect | None,
    fitting: Fitting,
    at_hand: AtHand | None = None,
    bar: bool = False,
) -> LayerPairing:
    """`pair_layers` from captures, the rule ``"effect"`` among its rules.

    Without ``k``, four pairs or as many as the target has layers, and of those with ``"effect"``
    only the ones whose measured effect is at least half of the largest: all pairs share one
    budget, and a layer that does little spends what the others could use.

    That rule has three steps.

    1. Every expert layer gets its held-out AUC (`separating`). Of those within a standard error
       of the best, the two with the highest AUC (then the steadiest direction) are tried.
    2. They are tried at all target layers, or at ``max(3 k, 12)`` evenly spread over the depth:
       aligned and fitted without a quarter of the examples.
    3. Each candidate is calibrated to the budget on a few neutral texts, and its effect is what
       it adds to log P(positive text) - log P(negative text), in nats, mean over held-out pairs of
       texts. Tokens that both begin with cancel: it is the preference for the positive
       continuation of their prompt.

    Without models, or where fewer than four held-out pairs begin alike, the effect is the AUC of
    the target's own held-out states along the candidate's vector; the settings say which it was.

    Cost beside the fit: with E and T layers tried, E T fits, and E T times at most 7 passes over
    8 neutral texts of 48 tokens and one over at most 64 held-out texts.
    """
    axes = {"expert_layers": expert.layers, "target_layers": target.layers, "seed": fitting.seed}
    most = k or min(FEW, len(target.layers))
    if rule != "effect":
        return pair_layers(information, most, rule, effect=effect, **axes)
    if not 1 <= most <= len(target.layers):
        return pair_layers(information, most, **axes)  # says what is wrong
    rows = _held_out(target.labels, target.pairs, fitting.seed)
    told = _told_apart(ranks, expert, fitting, bar)
    experts = _experts(expert, told, _standard_error(target.labels))
    targets = evenly(target.layers, most)
    fitted = _fitted(ranks, expert, target, experts, targets, rows.fitted, fitting)
    texts = None
    if at_hand is not None and not rows.same:
        texts = ranks.first(lambda: pairs_of_texts(at_hand, target, rows.held, fitting.seed))
    if texts:

        def measured() -> dict[tuple[int, int], float]:
            return effects_of(at_hand, fitted, texts, rows.fitted, bar and ranks.rank == 0)

        every = getattr(at_hand.model, "tp_size", None)  # its passes need every process
        effects = measured() if every else ranks.first(measured)
        what = {"effect": MEASURED, "unit": "nats", "held_out": len(texts),
                "budget": f"{setting(at_hand.budget)} ({at_hand.measure})"}  # fmt: skip
    else:
        effects = _separations(target, fitted, rows.held)
        what = {"effect": SEPARATION, "unit": "AUC", "held_out": len(rows.held),
                "why": _why(at_hand, rows)}  # fmt: skip
    pairing = pair_layers(
        information,
        most,
        rule,
        effect=lambda e, t: effects[e, t],
        shortlist=list(effects),
        auc=[math.nan if one.auc is None else one.auc for one in told],
        **axes,
    )
    pairing = replace(pairing, settings=pairing.settings | what)
    if not texts:
        return pairing
    if max(effects.values()) <= 0:
        tell(_NONE.format(budget=what["budget"], largest=short(max(effects.values()))))
    return pairing if k else _strong(pairing, effects)


def _strong(pairing: LayerPairing, effects: dict[tuple[int, int], float]) -> LayerPairing:
    """The pairs that do at least half of what the first one does; that one at least."""
    first, *others = pairing.pairs
    least = WEAK * effects[first[:2]]
    kept = [pair for pair in others if effects[pair[:2]] >= least > 0]
    return replace(pairing, pairs=(first, *kept))


@dataclass(frozen=True)
class _Rows:
    """Rows to fit candidates on and to judge them by; the same where there are too few."""

    fitted: Tensor
    held: Tensor
    same: bool = False


def _held_out(labels: Tensor, pairs: Tensor | None, seed: int) -> _Rows:
    everything = torch.arange(len(labels), device="cpu")
    try:
        fitted, held = split(labels, pairs, HELD_OUT, seed)
    except ValueError:  # few examples, or pairs that tie them together
        return _Rows(everything, everything, same=True)
    counts = [torch.bincount(labels[rows], minlength=2).min() for rows in (fitted, held)]
    if counts[0] <= LEAST_PER_CLASS or counts[1] < 1:
        return _Rows(everything, everything, same=True)
    return _Rows(fitted[permutation(len(fitted), seed)[:MOST_ROWS].sort().values], held)


def _told_apart(ranks: Ranks, expert: Captured, fitting: Fitting, bar: bool) -> list[Separating]:
    layers = ranks.share(expert.layers)
    found = separating(
        expert, layers, fitting.direction, fitting.rfm, seed=fitting.seed,
        bar=bar and ranks.rank == 0,
    )  # fmt: skip
    of = {
        layer: one for part in ranks.gather(dict(zip(layers, found))) for layer, one in part.items()
    }
    return [of[layer] for layer in expert.layers]


def _standard_error(labels: Tensor) -> float:
    """Of the AUC of unrelated scores."""
    positive = int(labels.sum())
    negative = len(labels) - positive
    return math.sqrt((positive + negative + 1) / (12 * max(positive * negative, 1)))


def _experts(expert: Captured, told: Sequence[Separating], error: float) -> list[int]:
    best = max(one.rank[0] for one in told)
    near = [i for i, one in enumerate(told) if one.rank[0] >= best - error]
    near.sort(key=lambda i: told[i].rank, reverse=True)
    return [expert.layers[i] for i in near[:EXPERTS]]


def evenly(layers: Sequence[int], k: int) -> list[int]:
    """All layers, or so many evenly spread over the depth, the first and the last among them."""
    count = max(3 * k, TARGETS)
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def _fitted(
    ranks: Ranks,
    expert: Captured,
    target: Captured,
    experts: Sequence[int],
    targets: Sequence[int],
    rows: Tensor,
    fitting: Fitting,
) -> dict[int, SteeringVectors]:
    """Vectors at all target layers that are tried, by expert layer."""
    read = target.take(rows, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with the states, the fit on all rows says
        return {
            e: fitting.over(
                ranks,
                expert.take(rows, [e]),
                read,
                LayerPairing(tuple((e, t, math.nan) for t in targets)),
            )[1]
            for e in experts
        }


def _separations(
    target: Captured, fitted: dict[int, SteeringVectors], held: Tensor
) -> dict[tuple[int, int], float]:
    labels = target.labels[held].unsqueeze(0)
    found = {}
    for e, vectors in fitted.items():
        for t in vectors.layers:
            states = target.layer(t)[held]
            scores = states.float() @ vectors.vectors[t].to(states.device).float()
            found[e, t] = float(auc(scores.unsqueeze(0), labels))
    return found


def _why(at_hand: AtHand | None, rows: _Rows) -> str:
    if rows.same:
        return "too few examples to hold any out: measured on the rows that were fitted on"
    if at_hand is None:
        return "only states were at hand"
    return f"fewer than {LEAST_PAIRS} held-out pairs of texts begin alike"
