"""The four steps in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .align import align
from .artifacts import Alignment, HiddenStates, LayerPairing, MutualInformation
from .contrast import ContrastSet
from .fit import fit_vectors
from .models import capture, load
from .pair import mutual_information, pair_layers
from .rfm import RFM
from .vectors import SteeringVectors


@dataclass
class ExpertSteer:
    """Capture, align, pair and fit, with the settings of each step in one place.

    Attributes:
        pairs: layer pairs to steer; by default four, or fewer where the target is shallower.
        rule: see `pair_layers`.
        method, solver, rotation: see `align`.
        estimator, components, null: see `mutual_information`.
        direction, rfm, validation: see `fit_vectors` (``direction`` is its ``method``).
        position, batch_size, max_length: see `capture`.
        seed: of every random choice.

    After ``fit``: ``expert_``, ``target_`` (the captures), ``alignment_``, ``information_`` and
    ``pairing_``.
    """

    pairs: int | None = None
    rule: str = "lowest"
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
    seed: int = 0
    progress: bool = True

    def fit(
        self,
        expert_model: str | nn.Module,
        target_model: str | nn.Module,
        contrast: ContrastSet,
        *,
        expert_tokenizer: Any = None,
        target_tokenizer: Any = None,
        **load_options: Any,
    ) -> SteeringVectors:
        """Fit steering vectors for ``target_model`` from what ``expert_model`` knows.

        Args:
            expert_model, target_model: models, or paths and Hub ids, which are loaded one after
                the other and released after their capture.
            expert_tokenizer, target_tokenizer: needed for models that were not loaded from a
                path that also holds the tokenizer.
            load_options: ``device``, ``dtype`` and ``revision`` for models given by name.

        Raises:
            ValueError: see the steps; each error names the argument to change.
        """
        self.expert_ = self._capture(expert_model, expert_tokenizer, contrast, load_options)
        self.target_ = self._capture(target_model, target_tokenizer, contrast, load_options)
        return self.fit_states(self.expert_, self.target_)

    def fit_states(self, expert: HiddenStates, target: HiddenStates) -> SteeringVectors:
        """The same from captures that exist already."""
        self.alignment_: Alignment = align(
            expert,
            target,
            self.method,
            solver=self.solver,
            rotation=self.rotation,
            seed=self.seed,
        )
        self.information_: MutualInformation = mutual_information(
            expert.states,
            target.states,
            self.estimator,
            components=self.components,
            null=self.null,
            seed=self.seed,
        )
        self.pairing_: LayerPairing = pair_layers(
            self.information_,
            min(4, len(target.layers)) if self.pairs is None else self.pairs,
            self.rule,
            expert_layers=expert.layers,
            target_layers=target.layers,
            seed=self.seed,
        )
        return fit_vectors(
            expert,
            target,
            self.alignment_,
            self.pairing_,
            self.direction,
            rfm=self.rfm,
            validation=self.validation,
            seed=self.seed,
        )

    def _capture(
        self, model: Any, tokenizer: Any, contrast: ContrastSet, load_options: dict[str, Any]
    ) -> HiddenStates:
        model, tokenizer = load(model, tokenizer, **load_options)
        return capture(
            model,
            tokenizer,
            contrast,
            position=self.position,
            batch_size=self.batch_size,
            max_length=self.max_length,
            progress=self.progress,
        )
