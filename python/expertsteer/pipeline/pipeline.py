"""The four steps in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..alignment.aligning import ALIGNMENTS, ROTATIONS, SOLVERS
from ..alignment.alignment import Alignment
from ..calibration.calibrating import checked_budget, found_strength
from ..calibration.neutral import NEUTRAL_TEXTS
from ..contrast.contrast_set import ContrastSet
from ..contrast.stream import Source
from ..fitting.checking import health
from ..fitting.fitting import DIRECTIONS
from ..fitting.health_report import HEALTH_KEY, Health
from ..models.loading import load
from ..pairing.information import ESTIMATORS
from ..pairing.layer_pairs import LayerPairing, MutualInformation
from ..pairing.rules import RULES, Effect
from ..rfm import RFM
from ..states.in_memory import capture
from ..states.on_disk import capture_to
from ..states.states import Captured
from ..support.paths import local_path
from ..support.progress import quietable
from ..support.ranks import Ranks
from ..vectors.calibration import Calibration
from ..vectors.vectors import SteeringVectors
from .candidates import Fitting, paired
from .effects import AtHand
from .over_processes import information_over


@dataclass
class ExpertSteer:
    """Capture, align, pair and fit, with the settings of each step in one place.

    Attributes:
        pairs: layer pairs to steer; by default four, or fewer where the target is shallower or
            the others would do less than half of what the best one does (rule ``"effect"``).
        rule: ``"effect"``: expert layers that tell the classes apart, at the target layers where
            steering with them moves the preference between held-out texts most at ``budget``. It
            costs 24 short calibrations and fits, or 6 for each of more than 4 pairs. Where no
            effect can be measured, the target's states decide; ``pairing_.settings`` say which.
            The other rules, and effect: see `pair_layers`.
        method, solver, rotation: see `align`.
        estimator, components, null: see `mutual_information`.
        direction, rfm, validation: see `fit_vectors` (``direction`` is its ``method``).
        position, batch_size, max_length: see `capture`.
        neutral: texts that steering should leave alone, on which the strength is calibrated on the
            target, so that `attach` steers at a known price; ``None`` for no calibration. Where no
            strength can be found that is a warning, and the vectors have none. budget, measure: see
            `calibrate`.
        health: whether to check the fit (see `health`), at the cost of another alignment and two
            to four more fits of the chosen pairs; what it finds wrong is told as `HealthWarning`
            (``expertsteer.HealthWarning``), and the result goes into the vectors' metadata.
        seed: of every random choice.
        captures: a folder for the states, ``expert`` and ``target`` in it (`capture_to`): a fit
            that was stopped goes on there. Needed where several processes share the work
            (``torch.distributed``); by default states are held in memory.

    After ``fit``: ``expert_``, ``target_`` (the captures), ``information_``, ``pairing_`` and
    ``alignment_`` (of the chosen pairs); with ``health`` also ``health_``, with ``neutral``
    ``calibration_`` (``None`` where no strength was found).
    """

    pairs: int | None = None
    rule: str = "effect"
    effect: Effect | None = None
    method: str = "autoencoder"
    solver: str = "closed_form"
    rotation: str = "procrustes"
    estimator: str = "gaussian"
    components: int | None = None
    null: int | None = 20
    direction: str = "rfm"
    rfm: RFM | None = None
    validation: float = 0.2
    position: str | int = "last"
    batch_size: int = 16
    max_length: int | None = None
    neutral: Sequence[str] | None = NEUTRAL_TEXTS
    budget: float = 0.1
    measure: str = "kl"
    health: bool = True
    seed: int = 0
    progress: bool = True
    captures: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        # Before any model is loaded: a wrong word should not cost two captures.
        for name, choices in (
            ("rule", RULES),
            ("method", ALIGNMENTS),
            ("solver", SOLVERS),
            ("rotation", ROTATIONS),
            ("estimator", ESTIMATORS),
            ("direction", DIRECTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, came {getattr(self, name)!r}")
        if (self.rule == "validated") != (self.effect is not None):
            raise ValueError(
                "effect must be given with rule='validated' and with no other, came rule="
                f"{self.rule!r} and effect={self.effect!r}"
            )
        if self.pairs is not None and self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, came {self.pairs}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be a share in [0, 1), came {self.validation}")
        checked_budget(self.budget, self.measure)
        if self.neutral is not None and (isinstance(self.neutral, str) or not len(self.neutral)):
            raise ValueError(f"neutral must be a list of texts or None, came {self.neutral!r}")

    @quietable
    def fit(
        self,
        expert_model: str | nn.Module,
        target_model: str | nn.Module,
        contrast: ContrastSet | Source,
        *,
        expert_tokenizer: Any = None,
        target_tokenizer: Any = None,
        expert_options: dict[str, Any] | None = None,
        target_options: dict[str, Any] | None = None,
        **load_options: Any,
    ) -> SteeringVectors:
        """Fit steering vectors for ``target_model`` from what ``expert_model`` knows.

        Args:
            expert_model, target_model: models, or paths and Hub ids, which are loaded one after
                the other: the expert is released after its capture, the target at the end.
            expert_tokenizer, target_tokenizer: needed for models that were not loaded from a
                path that also holds the tokenizer.
            contrast: a `ContrastStream` needs ``captures``.
            expert_options, target_options: for one side only: ``revision`` (with a Hub id),
                ``trust_remote_code``, and ``decoder_layers`` and ``layers`` of its capture.
            load_options: ``device``, ``dtype`` and ``trust_remote_code`` (off; see ``load``) for
                models given by name.

        Raises:
            ValueError: see the steps; each error names the argument to change.
        """
        self.expert_, self.target_, loaded = self.capture_both(
            expert_model,
            target_model,
            contrast,
            expert_tokenizer=expert_tokenizer,
            target_tokenizer=target_tokenizer,
            expert_options=expert_options,
            target_options=target_options,
            **load_options,
        )
        ranks = Ranks.here()
        at_hand = AtHand.of(self, contrast, loaded)
        vectors = self.fit_states(self.expert_, self.target_, ranks, at_hand)
        if self.neutral is None:
            return vectors
        if getattr(loaded[0], "tp_size", None):  # its passes need every process
            return self.calibrated(vectors, *loaded)
        return ranks.first(lambda: self.calibrated(vectors, *loaded))

    @quietable
    def capture_both(
        self,
        expert_model: str | nn.Module,
        target_model: str | nn.Module,
        contrast: ContrastSet | Source,
        *,
        expert_tokenizer: Any = None,
        target_tokenizer: Any = None,
        expert_options: dict[str, Any] | None = None,
        target_options: dict[str, Any] | None = None,
        **load_options: Any,
    ) -> tuple[Captured, Captured, tuple[nn.Module, Any, dict[str, Any]] | None]:
        """The first step of `fit`, with its arguments.

        Returns:
            The expert's states, the target's, and, where it is to be measured, the target with
            its tokenizer and options.
        """
        if self.captures is None and Ranks.here().size > 1:
            raise ValueError(
                "captures must name a folder that all processes see, came None: that is where they "
                "leave the states for each other"
            )
        if self.captures is None and not isinstance(contrast, ContrastSet):
            raise ValueError(
                "contrast must be a ContrastSet unless captures names a folder for the states of a "
                f"stream, came {type(contrast).__name__}"
            )
        expert = (expert_options or {}) | load_options
        target = (target_options or {}) | load_options
        # Only the states are kept: the expert is gone before the target is loaded.
        read = self._capture(expert_model, expert_tokenizer, contrast, expert, "expert")[0]
        also_read, loaded = self._capture(
            target_model, target_tokenizer, contrast, target, "target"
        )
        wanted = self.neutral is not None or self.rule == "effect"
        return read, also_read, (*loaded, target) if wanted else None

    @quietable
    def fit_states(
        self,
        expert: Captured,
        target: Captured,
        ranks: Ranks | None = None,
        at_hand: AtHand | None = None,
    ) -> SteeringVectors:
        """The same from captures that exist already, without calibration.

        Args:
            expert, target: `HiddenStates` or `StoredStates`.
            ranks: processes that all call this, to share the layers and pairs out over them.
            at_hand: the target and the texts, to measure the effect of layer pairs with.
        """
        ranks = ranks or Ranks()

        def of(*names: str) -> dict[str, Any]:
            return {name: getattr(self, name) for name in names}

        how = of("estimator", "components", "null", "seed")
        self.information_: MutualInformation = information_over(ranks, expert, target, **how)
        alignment = of("method", "solver", "rotation", "seed")
        fitting = Fitting(alignment, self.direction, self.rfm, self.validation, self.seed)
        self.pairing_: LayerPairing = paired(
            ranks, self.information_, expert, target, self.pairs, self.rule, self.effect, fitting,
            at_hand, self.progress,
        )  # fmt: skip
        self.alignment_: Alignment
        self.alignment_, vectors = fitting.over(ranks, expert, target, self.pairing_)
        return self._checked(vectors, expert, target, ranks) if self.health else vectors

    def _checked(
        self, vectors: SteeringVectors, expert: Captured, target: Captured, ranks: Ranks
    ) -> SteeringVectors:
        self.health_: Health = ranks.first(
            lambda: health(
                expert,
                target,
                self.alignment_,
                self.pairing_,
                vectors,
                self.information_,
                rfm=self.rfm,
                seed=self.seed,
                progress=self.progress,
            )
        )
        if ranks.rank == 0:
            self.health_.tell()
        return replace(vectors, metadata=vectors.metadata | {HEALTH_KEY: self.health_.to_dict()})

    def calibrated(
        self, vectors: SteeringVectors, model: nn.Module, tokenizer: Any, options: dict[str, Any]
    ) -> SteeringVectors:
        """The vectors with the strength that keeps the budget on the neutral texts, if one does."""
        self.calibration_: Calibration | None = found_strength(
            model,
            vectors,
            self.neutral,
            tokenizer,
            budget=self.budget,
            measure=self.measure,
            batch_size=self.batch_size,
            decoder_layers=options.get("decoder_layers"),
        )
        found = self.calibration_
        return vectors if found is None else vectors.with_calibration(found)

    def _capture(
        self,
        model: Any,
        tokenizer: Any,
        contrast: ContrastSet | Source,
        options: dict[str, Any],
        side: str,
    ) -> tuple[Captured, tuple[nn.Module, Any]]:
        reading = {n: options[n] for n in ("decoder_layers", "layers") if n in options}
        loading = {n: v for n, v in options.items() if n not in reading}
        model, tokenizer = load(model, tokenizer, **loading)
        reading |= {
            "position": self.position,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "progress": self.progress,
        }
        if self.captures is not None:
            folder = local_path(self.captures, "captures") / side
            states = capture_to(folder, model, tokenizer, contrast, **reading)
        else:
            states = capture(model, tokenizer, contrast, **reading)
        return states, (model, tokenizer)
