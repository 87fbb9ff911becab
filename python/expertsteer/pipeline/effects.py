"""What steering a layer pair does: the preference for one continuation of a text over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..calibration.bracket import STEP
from ..calibration.calibrating import Searching, checked_budget, searched
from ..calibration.divergence import Divergence, neutral_texts
from ..contrast.stream import Source
from ..models.forward import longest
from ..models.scoring import Scored, log_probabilities, scorable
from ..states.states import Captured
from ..states.tokens import token_ids
from ..steering.steering import attach
from ..support.progress import progress
from ..support.tensors import permutation
from ..vectors.vectors import SteeringVectors

PAIRS = 32  # of held-out texts that an effect is measured on
LEAST_PAIRS = 4
TOKENS = 8192  # of these texts in all
NEUTRAL = 8  # texts that the strengths are found on, of at most so many tokens
NEUTRAL_TOKENS = 48
PASSES = 7  # over them per candidate


@dataclass(frozen=True)
class AtHand:
    """What an effect is measured with, where models and texts are at hand.

    Attributes:
        model, tokenizer: the target.
        contrast: the examples of the captures, in their order.
        neutral: texts that the strength of every candidate is found on; ``None`` takes some that
            the candidates were fitted on.
        budget, measure: see `calibrate`.
        batch_size: sequences per forward pass.
        decoder_layers: see `attach`.
    """

    model: nn.Module
    tokenizer: Any
    contrast: Source | Sequence[Any]
    neutral: Sequence[Any] | None = None
    budget: float = 0.1
    measure: str = "kl"
    batch_size: int = 16
    decoder_layers: str | None = None

    @classmethod
    def of(cls, settings: Any, contrast: Any, loaded: tuple | None) -> AtHand | None:
        """With the settings of an `ExpertSteer`, of what its ``capture_both`` gave."""
        if loaded is None:
            return None
        model, tokenizer, options = loaded
        names = ("neutral", "budget", "measure", "batch_size")
        return cls(
            model,
            tokenizer,
            contrast,
            **{name: getattr(settings, name) for name in names},
            decoder_layers=options.get("decoder_layers"),
        )


def pairs_of_texts(
    at_hand: AtHand, target: Captured, held: Tensor, seed: int
) -> list[list[Scored]]:
    """A positive and a negative text of each pair, scored from where they part."""
    if target.pairs is None:
        return []
    sides: dict[int, dict[int, int]] = {}
    for row in held.tolist():
        pair = int(target.pairs[row])
        if pair >= 0:
            sides.setdefault(pair, {}).setdefault(int(target.labels[row]), row)
    both = [(two[1], two[0]) for two in sides.values() if len(two) == 2]
    both = [both[i] for i in permutation(len(both), seed)[: 4 * PAIRS].tolist()] if both else []
    texts = _examples(at_hand, [row for pair in both for row in pair])
    ids, _ = token_ids(at_hand.tokenizer, [texts[row] for pair in both for row in pair])
    room, found, tokens = longest(at_hand.model, at_hand.decoder_layers), [], 0
    for positive, negative in zip(ids[::2], ids[1::2]):
        start = next((i for i, (a, b) in enumerate(zip(positive, negative)) if a != b), 0)
        scored = [(positive, start), (negative, start)]
        longer = max(map(len, (positive, negative)))
        tokens += len(positive) + len(negative)
        if len(found) >= PAIRS or (tokens > TOKENS and len(found) >= LEAST_PAIRS):
            break
        if scorable(scored) and (room is None or longer <= room):
            found.append(scored)
    return found if len(found) >= LEAST_PAIRS else []


def _examples(at_hand: AtHand, rows: Sequence[int]) -> dict[int, Any]:
    wanted = set(rows)
    return {i: example for i, example in enumerate(at_hand.contrast) if i in wanted}


def _neutral(at_hand: AtHand, fitted: Tensor) -> list[Any]:
    """Given texts evenly spread over all of them, else token ids of examples."""
    texts = at_hand.neutral
    if texts is not None:
        step = max(1, len(texts) // NEUTRAL)
        return list(texts[::step][:NEUTRAL])
    rows = fitted[:: max(1, len(fitted) // NEUTRAL)][:NEUTRAL].tolist()
    return token_ids(at_hand.tokenizer, list(_examples(at_hand, rows).values()))[0]


def effects_of(
    at_hand: AtHand,
    fitted: dict[int, SteeringVectors],
    texts: list[list[Scored]],
    rows: Tensor,
    bar: bool,
) -> dict[tuple[int, int], float]:
    model, options = at_hand.model, {"decoder_layers": at_hand.decoder_layers}
    limit = checked_budget(at_hand.budget, at_hand.measure)
    searching = Searching(limit, PASSES, tolerance=STEP - 1, options=options, lift=2)
    least = 1 if at_hand.measure == "kl" else 2
    neutral = neutral_texts(
        model, _neutral(at_hand, rows), at_hand.tokenizer, NEUTRAL_TOKENS, least
    )
    divergence = Divergence(
        model, neutral, at_hand.measure, searching.per_round, at_hand.batch_size
    )
    sequences = [scored for pair in texts for scored in pair]

    def preference() -> Tensor:
        each = log_probabilities(model, sequences, at_hand.batch_size).view(-1, 2)
        return each[:, 0] - each[:, 1]

    before = preference()
    candidates = [(e, t) for e, vectors in fitted.items() for t in vectors.layers]
    found: dict[tuple[int, int], float] = {}
    for e, t in progress(candidates, "held-out effects of layer pairs", bar):
        one = fitted[e].select((t,))
        # Divergence grows about as the strength's square: between two measured ones a factor of
        # four apart there is little to guess.
        strength = searched(divergence, one, searching).crossing
        if strength is None:  # a layer that no small step leaves alone: nothing to gain there
            found[e, t] = 0.0
            continue
        with attach(model, one, strength=strength, **options):
            gain = float((preference() - before).mean())
        found[e, t] = gain if math.isfinite(gain) else 0.0
    return found
