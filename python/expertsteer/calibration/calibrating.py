"""Find the strength at which steering costs a stated amount on neutral text.

A strength says nothing about another vector's: what they cost does. At equal divergence from the
unsteered model, methods can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..steering.checks import by_name
from ..steering.steering import attach
from ..support.numbers import setting, short, unit
from ..support.telling import tell
from ..vectors.calibration import Calibration
from ..vectors.vectors import SteeringVectors
from .bracket import Bracket, search
from .divergence import MEASURES, Divergence, NeutralTexts, neutral_texts
from .neutral import NEUTRAL_TEXTS

PASSES = 12
TOLERANCE = 0.02
COARSE = 1.1  # ratio of the bracket's ends from which on a result says so


class BudgetError(ValueError):
    """No strength meets the budget."""


def calibrate(
    model: nn.Module,
    vectors: SteeringVectors | Mapping[str, SteeringVectors],
    texts: Sequence[Any] = NEUTRAL_TEXTS,
    tokenizer: Any = None,
    *,
    budget: float = 0.1,
    measure: str = "kl",
    layers: Sequence[int] | Sequence[Sequence[int]] | None = None,
    operation: str = "add",
    start: float | None = None,
    smallest: float = 1e-4,
    largest: float = 64.0,
    tolerance: float = TOLERANCE,
    max_passes: int = PASSES,
    batch_size: int = 32,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    check_model: bool = True,
) -> Any:
    """Find the largest strength whose divergence on neutral text stays within a budget.

    Every token of the texts is steered. The unsteered model runs first, and how far apart its
    states are at the steered layers tells how small the first strengths must be; several are then
    measured in one batch, and the bracket around the budget is narrowed. The search looks for the
    first crossing: all measured strengths below the one found keep the budget.

    Args:
        model: as for `attach`, not steered yet.
        vectors: one `SteeringVectors`, or several by name, each calibrated by itself.
        texts: neutral text, what steering should leave alone, or token ids of each text; by
            default `NEUTRAL_TEXTS`, a dozen short English ones of several kinds.
        tokenizer: needed for texts.
        budget: for ``"kl"`` nats per token, more than 0; for ``"perplexity_ratio"`` more than 1.
        measure: ``"kl"``, the mean over tokens of KL(unsteered || steered) between next-token
            distributions; ``"perplexity_ratio"``, perplexity of the texts over the unsteered one.
        layers: steer only these; a list of such lists gives one result for each.
        operation: see `attach`.
        start: where the first round of strengths lies around, by default what the unsteered
            states tell: ``4 sqrt(budget)`` of their median deviations, taken dimension by
            dimension. The result does not depend on it beyond the tolerance, where ``max_passes``
            are enough.
        smallest, largest: nothing outside is tried.
        tolerance: the next measured strength is at most this share above the one found, where
            ``max_passes`` allow that.
        max_passes: passes over the texts for each result, with every strength of a batch and the
            unsteered model counted as one pass; at least 4.
        batch_size: sequences per forward pass, each text counted once per strength, and so few
            that their logits take at most 512 MiB in single precision, or are one sequence's.
        max_length: tokens kept of each text, by default the model's context.
        decoder_layers, check_model: see `attach`.

    Returns:
        A `Calibration`; a list of them with several layer subsets; a dict of these by name with
        several vectors. Pass it to `SteeringVectors.with_calibration` to steer with
        ``strength="auto"``.

    Raises:
        ValueError: no strength meets the budget, no text, a budget out of range, see also `attach`.

    Warns:
        UserWarning: texts cut or left out, a divergence that is not monotonic, a budget not
            reached, a coarse bracket; the result holds the same words.
    """
    experts = {None: vectors} if isinstance(vectors, SteeringVectors) else by_name(vectors)
    limit = checked_budget(budget, measure)
    options = {"operation": operation, "decoder_layers": decoder_layers, "check_model": check_model}
    searching = Searching(limit, max_passes, start, smallest, largest, tolerance, options)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, came {batch_size!r}")
    subsets = {name: _subsets(one, layers) for name, one in experts.items()}
    least = 1 if measure == "kl" else 2
    neutral = neutral_texts(model, texts, tokenizer, max_length, least)
    divergence = Divergence(model, neutral, measure, searching.per_round, batch_size)
    results = {
        name: [calibrated(divergence, experts[name].select(s), searching) for s in chosen]
        for name, chosen in subsets.items()
    }
    for text in dict.fromkeys(w for rows in results.values() for r in rows for w in r.warnings):
        tell(text)
    if not _several(layers):
        results = {name: rows[0] for name, rows in results.items()}
    return results.get(None, results)


def found_strength(
    model: nn.Module, vectors: SteeringVectors, texts: Sequence[Any], tokenizer: Any, **options: Any
) -> Calibration | None:
    """`calibrate` as the end of a fit, which is worth more than its strength.

    Warns:
        UserWarning: there is none, with the error.
    """
    try:
        return calibrate(model, vectors, texts, tokenizer, **options)
    except ValueError as error:
        tell(f"the vectors are fitted, but carry no strength: {error}")
        return None


@dataclass(frozen=True)
class Searching:
    """How strengths are searched for: ``limit`` is the budget in nats, the rest as in `calibrate`.

    ``options`` go to `attach`. Comparisons, which search often, take at ``most`` two strengths at
    once and ``lift`` the start that the states tell: fewer strengths, at times a round more.
    """

    limit: float
    max_passes: int = PASSES
    start: float | None = None
    smallest: float = 1e-4
    largest: float = 64.0
    tolerance: float = TOLERANCE
    options: Mapping[str, Any] = field(default_factory=dict)
    most: int = 4
    lift: float = 1.0

    def __post_init__(self) -> None:
        bounds = [b for b in (self.smallest, self.start, self.largest) if b is not None]
        ordered = self.smallest < self.largest and bounds == sorted(bounds)
        if not ordered or not all(0 < bound < math.inf for bound in bounds):
            raise ValueError(
                "smallest, start and largest must be positive, finite and in this order (start "
                f"may be None), came {(self.smallest, self.start, self.largest)}"
            )
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a share such as 0.02, came {self.tolerance}")
        if type(self.max_passes) is not int or self.max_passes < 4:
            raise ValueError(f"max_passes must be an integer from 4 on, came {self.max_passes!r}")

    @property
    def per_round(self) -> int:
        """Strengths in a batch: three rounds, beside the unsteered model, at least."""
        return max(2, min(self.most, (self.max_passes - 1) // 3))


def calibrated(
    divergence: Divergence, vectors: SteeringVectors, searching: Searching
) -> Calibration:
    """One search, with what was measured of the unsteered model kept for the next one.

    Raises:
        BudgetError: no strength meets the budget.
    """
    limit, options = searching.limit, searching.options
    passes, sweeps = divergence.passes, divergence.sweeps
    found = searched(divergence, vectors, searching)
    ratio = divergence.measure == "perplexity_ratio"
    shown = [(s, _exp(d) if ratio else d) for s, d in found.points]
    budget = _exp(limit) if ratio else limit
    if found.low is None:
        _raise_unmet(shown, budget, divergence.measure, vectors.layers, searching)
    return Calibration(
        strength=found.low,
        divergence=dict(shown)[found.low],
        budget=budget,
        measure=divergence.measure,
        operation=options.get("operation", "add"),
        layers=vectors.layers,
        curve=tuple(shown),
        next_strength=found.high,
        monotonic=not found.falls() and not found.returns(),
        passes=divergence.passes - passes,
        sweeps=divergence.sweeps - sweeps,
        texts=len(divergence.texts.rows),
        tokens=divergence.texts.tokens,
        truncated=divergence.texts.truncated,
        excluded=divergence.texts.excluded,
        warnings=tuple(_remarks(found, divergence.texts, vectors.layers)),
        fingerprint=vectors.fingerprint,
    )


def searched(divergence: Divergence, vectors: SteeringVectors, searching: Searching) -> Bracket:
    """The strengths that were measured, and between which two of them the budget lies."""
    limit, options = searching.limit, searching.options
    left = searching.max_passes + divergence.passes
    with attach(divergence.model, vectors, strength=0.0, mode="slot", **options) as steering:
        steering.set(strength=1.0)  # of which every row takes its share
        steering.watch = False  # outputs that are not finite are over any budget
        start = searching.start
        if start is None:
            operation = options.get("operation", "add")
            start = divergence.spread(steering).start(vectors, operation, limit) * searching.lift
        return search(
            lambda places: divergence(steering, 0, places),
            limit,
            start=min(max(start, searching.smallest), searching.largest),
            smallest=searching.smallest,
            largest=searching.largest,
            affordable=lambda: left - divergence.passes - divergence.next_cost,
            per_round=searching.per_round,
            tolerance=searching.tolerance,
        )


def checked_budget(budget: float, measure: str) -> float:
    """In nats.

    Raises:
        ValueError: an unknown measure, a budget out of its range.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {MEASURES}, came {measure!r}")
    least = 0 if measure == "kl" else 1
    if isinstance(budget, bool) or not least < budget < math.inf:
        raise ValueError(
            f"budget must be more than {least} and finite with measure={measure!r} "
            f"({unit(measure)}), came {budget}"
        )
    return float(budget) if measure == "kl" else math.log(budget)


def _subsets(vectors: SteeringVectors, layers: Any) -> list[tuple[int, ...]]:
    """The layers of every result."""
    if layers is None:
        return [vectors.layers]
    subsets = [tuple(e) for e in layers] if _several(layers) else [tuple(layers)]
    if not subsets or not all(subsets):
        raise ValueError(f"layers must name at least one layer, came {layers!r}")
    return subsets


def _several(layers: Any) -> bool:
    return layers is not None and any(isinstance(e, Sequence) for e in layers)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _raise_unmet(curve, budget, measure, layers, searching) -> None:
    strength, least = min(curve, key=lambda point: point[1])
    raise BudgetError(
        f"budget={setting(budget)} ({measure}) is met by no strength tried for layers {layers}: "
        f"the smallest divergence found is {short(least)}, at strength {short(strength)}; raise "
        f"the budget, steer fewer layers, or lower smallest={setting(searching.smallest)} or start"
    )


def _remarks(found: Bracket, texts: NeutralTexts, layers: tuple[int, ...]):
    if texts.truncated:
        yield f"texts: {texts.truncated} of {len(texts.rows)} were cut to the context's length"
    if texts.excluded:
        yield f"texts: {texts.excluded} had too few tokens and were left out"
    at = f"layers {layers}"
    for a, b in found.falls():
        fall = f"falls from strength {short(a)} to {short(b)}"
        yield f"{at}: the divergence {fall}; it is not monotonic"
    if found.returns():
        places = ", ".join(map(short, found.returns()))
        yield (
            f"{at}: not monotonic, the budget is met again at strength {places}, beyond the "
            "first crossing, which is what was searched for"
        )
    if found.high is None:
        yield (
            f"{at}: strength {short(found.low)}, the largest measured, is still within the budget; "
            "raise largest or start"
        )
    elif found.ratio > COARSE:
        yield (
            f"{at}: the budget lies between strengths {short(found.low)} and {short(found.high)}; "
            "give max_passes or a closer start to narrow that"
        )
