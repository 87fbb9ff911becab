"""One method at a time: its strength at the budget, its best layers, its score and its price."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.bracket import STEP
from ..calibration.calibrating import (
    BudgetError,
    Searching,
    calibrated,
    searched,
)
from ..calibration.divergence import Divergence, NeutralTexts, neutral_texts
from ..models.encoding import behind_prompt
from ..steering.steering import Steering, attach
from ..vectors.vectors import SteeringVectors
from .comparison import PROMPT, UNSTEERED, ComparisonRow
from .statistics import bootstrap_interval

Score = Callable[[str, str], Tensor]
Setting = tuple[int, SteeringVectors]  # the sign that it stands for, and what steers
MANY, FINALISTS = 8, 3  # settings from which on they are sifted, and how many are left then


@dataclass(frozen=True)
class Chosen:
    """The best setting on validation."""

    rank: tuple[float, float]
    vectors: SteeringVectors
    strength: float
    sign: int
    tried: int
    passes: int


@dataclass
class EqualPrice:
    """A model with the scores and texts that every method is measured on, all at one divergence.

    Attributes:
        chosen: what validation chose for each method that has a row.
        on_setting: called with the seconds of every strength that was searched for and validated.
    """

    model: nn.Module
    score: Score
    measure: str
    chosen_on: NeutralTexts
    reported_on: NeutralTexts
    searching: Searching
    batch_size: int
    prices: dict[str, Callable[[str], float]]
    chosen: dict[str, Chosen] = field(default_factory=dict)
    on_setting: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        every = slice(None, None, 3)
        rows, places = self.chosen_on.rows[every], self.chosen_on.places[every]
        few = replace(self.chosen_on, rows=rows, places=places)
        groups = self.searching.per_round
        self.calibrating, self.sifting = (
            Divergence(self.model, texts, self.measure, groups, self.batch_size)
            for texts in (self.chosen_on, few)
        )
        self.reporting = Divergence(self.model, self.reported_on, self.measure, 1, self.batch_size)

    def choose(
        self, variants: Sequence[SteeringVectors], subsets: Sequence[Sequence[int]]
    ) -> Chosen | None:
        """The variant and layers with the best validation score at the budget.

        An empty subset stands for all layers of a variant. Of many settings the best few by a
        rough search are measured as the others are.
        """
        settings, best, before = _settings(variants, subsets), None, self._passes
        tried, finalists = self._sifted(settings) if len(settings) > MANY else (0, settings)
        for sign, vectors in finalists:
            found = self._timed(self._validated, vectors)
            if found is None:
                continue
            strength, rank = found
            tried += len(settings) <= MANY
            if best is None or rank > best.rank:
                best = Chosen(rank, vectors, strength, sign, 0, 0)
        passes = self._passes - before
        return None if best is None else replace(best, tried=tried, passes=passes)

    def _sifted(self, settings: Sequence[Setting]) -> tuple[int, list[Setting]]:
        """How many settings meet the budget, and the best few of them on validation.

        Roughly: each at a strength that is read off between two measured ones, a factor of four
        apart, on every third text. The texts are the same for all, and so is what they mislead by.
        """
        ranks = [self._timed(self._roughly, vectors) for _, vectors in settings]
        within = [i for i, rank in enumerate(ranks) if rank is not None]
        best = sorted(within, key=lambda i: ranks[i], reverse=True)[:FINALISTS]
        return len(within), [settings[i] for i in sorted(best)]

    def _timed(self, measure: Callable[[SteeringVectors], Any], vectors: SteeringVectors) -> Any:
        began = time.perf_counter()
        found = measure(vectors)
        if self.on_setting is not None:
            self.on_setting(time.perf_counter() - began)
        return found

    def _roughly(self, vectors: SteeringVectors) -> tuple[float, float] | None:
        rough = replace(self.searching, tolerance=STEP - 1)
        strength = searched(self.sifting, vectors, rough).crossing
        if strength is None:
            return None
        with self.attached(vectors, strength=strength):
            return self.rank("validation")

    def _validated(self, vectors: SteeringVectors) -> tuple[float, tuple[float, float]] | None:
        """The strength at the budget and what it gives on validation, where there is one."""
        try:
            strength = calibrated(self.calibrating, vectors, self.searching).strength
        except BudgetError:
            return None
        with self.attached(vectors, strength=strength):
            return strength, self.rank("validation")

    @property
    def _passes(self) -> int:
        return self.calibrating.passes + self.sifting.passes

    def row(
        self,
        name: str,
        kind: str,
        variants: Sequence[SteeringVectors],
        subsets: Sequence[Sequence[int]],
    ) -> ComparisonRow | None:
        """The chosen setting on the test split; ``None`` where no strength meets the budget."""
        chosen = self.choose(variants, subsets)
        if chosen is None:
            return None
        self.chosen[name] = chosen
        with self.steered(chosen) as divergence:
            return self._measured(
                name,
                kind,
                divergence,
                layers=chosen.vectors.layers,
                strength=chosen.sign * chosen.strength,
                validation=chosen.rank[0],
                tried=chosen.tried,
                passes=chosen.passes,
            )

    def unsteered(self) -> ComparisonRow:
        same = 0.0 if self.measure == "kl" else 1.0
        return self._measured(UNSTEERED, "none", same, validation=self.rank("validation")[0])

    def prompt_row(
        self, prompts: Sequence[str], neutral: Sequence[str], tokenizer: Any, budget: float
    ) -> ComparisonRow:
        """The best prompt on validation within the budget; the cheapest where none is."""
        candidates = []
        for prompt in prompts:
            rows = self._prefixed(self.chosen_on, prompt, neutral[::2], tokenizer)
            divergence = self.shown(self.calibrating.behind(rows))
            rank = self.rank("validation", prompt)
            within = divergence <= budget
            # Without one within the budget price decides alone.
            key = (True, *rank) if within else (False, -divergence, 0.0)
            candidates.append((key, prompt, within, rank[0]))
        _, prompt, within, validation = max(candidates, key=lambda c: c[0])
        rows = self._prefixed(self.reported_on, prompt, neutral[1::2], tokenizer)
        return self._measured(
            PROMPT,
            "prompt",
            self.shown(self.reporting.behind(rows)),
            prompt,
            prompt=prompt,
            within=within,
            extra_tokens=len(rows[0]) - len(self.reported_on.rows[0]),
            validation=validation,
            tried=len(prompts),
            passes=2 * len(prompts),
        )

    def attached(self, vectors: SteeringVectors, **options: Any) -> Steering:
        """`attach`, where the strengths were searched for."""
        return attach(self.model, vectors, **self.searching.options, **options)

    @contextmanager
    def steered(self, chosen: Chosen) -> Iterator[float]:
        """The model under the chosen setting, and its divergence on the reported texts."""
        with self.attached(chosen.vectors, strength=0.0, mode="slot") as steering:
            steering.set(strength=1.0)  # of which every row takes its share
            (nats,) = self.reporting(steering, 0, [chosen.strength])
            steering.set_rows(None)
            steering.set(strength=chosen.strength)
            yield self.shown(nats)

    def _measured(
        self, name: str, kind: str, divergence: float, prompt_text: str = "", **settings: Any
    ) -> ComparisonRow:
        values = _columns(self.score("test", prompt_text))[:, 0]
        prices = {label: float(price(prompt_text)) for label, price in self.prices.items()}
        interval = bootstrap_interval(values)
        return ComparisonRow(
            name, kind, interval, tuple(values.tolist()), divergence, prices=prices, **settings
        )

    def rank(self, split: str, prompt: str = "") -> tuple[float, float]:
        """Mean scores of the model as it is now, in the order that decides."""
        means = _columns(self.score(split, prompt)).mean(dim=0)
        return float(means[0]), float(means[-1])

    def _prefixed(
        self, kept: NeutralTexts, prompt: str, texts: Sequence[str], tokenizer: Any
    ) -> tuple[tuple[int, ...], ...]:
        """Token ids of each neutral text that is measured, behind the prompt."""
        if kept.truncated:
            raise ValueError(
                f"prompts need neutral texts that are measured whole: {kept.truncated} are cut; "
                "give others, or no prompts"
            )
        prefixed = [behind_prompt(tokenizer, prompt, text) for text in kept.of(texts)]
        whole = neutral_texts(self.model, prefixed, tokenizer)
        if whole.truncated:
            raise ValueError(
                f"prompts: with {prompt!r} {whole.truncated} of the neutral texts are longer than "
                "the model's context; shorten either"
            )
        return whole.rows

    def shown(self, nats: float) -> float:
        if self.measure == "kl":
            return nats
        return float(torch.tensor(nats, dtype=torch.float64, device="cpu").exp())  # inf too


def searches(settings: int) -> int:
    """How many strengths are searched for to choose among so many settings."""
    return settings + FINALISTS * (settings > MANY)


def _settings(
    variants: Sequence[SteeringVectors], subsets: Sequence[Sequence[int]]
) -> list[Setting]:
    """Every variant at every choice of layers that it has; the second variant is the reverse."""
    found = []
    for place, variant in enumerate(variants):
        named = dict.fromkeys(tuple(subset) or variant.layers for subset in subsets)
        had = (subset for subset in named if set(subset) <= set(variant.layers))
        found += [(-1 if place else 1, variant.select(subset)) for subset in had]
    return found


def _columns(values: Any) -> Tensor:
    """``[N, 1 or 2]`` float64."""
    scores = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    shape = tuple(scores.shape)
    scores = scores.unsqueeze(1) if scores.ndim == 1 else scores
    if scores.ndim != 2 or scores.shape[1] not in (1, 2) or len(scores) < 2:
        raise ValueError(
            "score must return one value per item, [N] or [N, 2] with N of at least 2, came "
            f"{shape}"
        )
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("score must return finite values, came some that are not")
    return scores
