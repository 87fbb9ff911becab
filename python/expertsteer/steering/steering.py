"""Step 4: steer the target's hidden states while it runs.

Where a constant vector is added everywhere it becomes a bias of the layer and costs nothing
(folded). Else slots are put in the place of the ``forward`` of the steered layers once, and only
their contents change afterwards; one more, around the decoder, works out per forward pass which
tokens are steered, for all layers together. Leaving the context manager puts back what was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..folding.permanent import fold_permanently, why_not_permanent
from ..models.decoder import find_decoder, require_one_copy, unwrapped
from ..models.stand_ins import steerings_of
from ..vectors.vectors import SteeringVectors
from .bank import Bank, Gate
from .changing import Changeable
from .checks import (
    by_name,
    checked_experts,
    checked_prompt_length,
    require_distinct,
    require_effect,
)
from .given_positions import Positions, checked_positions
from .strengths import resolved_strength

_KEEP: Any = object()  # an argument that was not given, where None means something


def attach(
    model: nn.Module,
    vectors: SteeringVectors | Sequence[SteeringVectors] | Mapping[str, SteeringVectors],
    *,
    strength: float | str | None = None,
    positions: Positions = "all",
    operation: str = "add",
    gate: Gate | None = None,
    mode: str = "auto",
    decoder_layers: str | None = None,
    check_model: bool = True,
    backend: str = "auto",
) -> Steering:
    """Steer ``model``; use as a context manager, or call ``detach`` yourself.

    Args:
        model: a causal language model from transformers, compiled or not: the first call of a
            compiled one compiles once more, and no change of what is added does.
        vectors: what to add: at layer t ``strength * scales[t] * vectors[t]``. Several, in a list
            or by name, are all added unless ``set_rows`` chooses among them per sequence.
        strength: with fitted vectors a pure number, in units of how far apart the target's states
            are (`SteeringVectors.scales`). ``"auto"`` takes that of the calibration which the
            vectors carry (see `calibrate` and `SteeringVectors.with_calibration`). By default that
            one where there is one of exactly these vectors, else 1.0.
        positions: ``"all"`` tokens, those of the ``"prompt"``, the ``"generated"`` ones, or
            ``"last"`` (the token each prediction is made from: the prompt's last and all
            generated ones); a mask ``[batch or 1, length]`` over the padded sequence, whose end
            leaves later tokens alone, as `tokens_at` makes of indices; or a function of ``(places
            [tokens], inputs of the decoder by name)`` that gives a bool tensor ``[tokens]`` or
            ``[batch, tokens]``. Never padding. Virtual tokens (soft prompts) belong to the prompt
            and have negative places; where texts are packed in a row by ``position_ids``,
            ``"last"`` is the last of each. Outside ``generate`` what continues a cache counts as
            generated, and what starts one as the prompt, unless ``set(prompt_length=...)`` says.
        operation: ``"add"``; ``"add_keep_norm"`` rescales each state to the norm it had;
            ``"remove"`` takes the share ``strength`` of the component along the vector away;
            ``"clamp"`` sets that component to ``strength`` times the scale (see ``ops.steer``).
        gate: steer a token only where its state projects on a vector beyond a threshold.
        mode: ``"fold"`` makes the vector the bias of each layer's last linear, which adds no
            operation where the kernel takes one anyway, and beside a bias that the linear has the
            sum of both; ``"slot"`` serves everything; ``"auto"`` folds where that gives the same
            outputs and the linear has no bias of its own, and goes over to slots when it no longer
            would (other positions, dropout in training mode, a linear that was replaced), where
            ``"fold"`` raises.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.
        check_model: refuse vectors whose metadata name another architecture or depth.
        backend: of the slots; see `expertsteer.ops`.

    Forward passes in several threads keep their tokens apart. ``set``, ``set_rows`` and ``detach``
    are for all of them: each pass that begins afterwards, in a ``generate`` that is running too,
    is steered as they say, or not at all. A pass that another thread is in at that moment ends
    without an error, its first layers as before and its last ones perhaps as changed. ``attach``
    itself waits for nobody: attach before other threads use the model.

    Places are taken from what the passes of a ``generate`` show. One that contradicts those before
    (a cache of a release of transformers that is not known) is a RuntimeError before a wrong token
    is written; an `UnsteeredWarning` tells when ``generate`` wrote tokens and the positions chose
    none that the model read. Continuous batching (``generate_batch``) is refused unless every token
    is steered alike.

    One steering per model at a time: a second ``attach`` is refused. Where the object was lost, or
    something interrupted attaching or leaving, `detach` puts the model back.

    Raises:
        ValueError: a layer out of range, or the same module as another one, another width,
            vectors fitted for another model, unknown positions, operation or mode, a strength that
            is no finite number or beyond what states can hold, ``"auto"`` without a calibration of
            these vectors, a vector of zeros, a backend that cannot serve the model,
            ``mode="fold"`` where that is not exact, a model already steered.
    """
    require_one_copy(model)
    model = unwrapped(model)
    decoder = find_decoder(model, decoder_layers)
    experts = checked_experts(model, vectors, decoder, check_model, operation, gate)
    positions = checked_positions(positions)
    strength = resolved_strength(strength, experts, operation)
    bank = Bank(experts, operation, gate)
    require_distinct(decoder, bank.layers)
    steering = Steering(model, decoder, bank, backend)
    steering._start(strength, positions, mode, decoder_layers)
    return steering


def detach(model: nn.Module) -> bool:
    """Put a model back whatever steers it, also where the object that `attach` gave was lost.

    Args:
        model: the one that was given to `attach`, or one that holds it or is held by it.

    Returns:
        Whether anything was steering it; a model that is not steered is left as it is.

    Raises:
        ValueError: no ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, came {type(model).__name__}")
    found = steerings_of(model)
    for steering in found:
        steering.detach()
    return bool(found)


class Steering(Changeable):
    """A steered model. Made by `attach`; ``set`` and ``set_rows`` change what is added.

    Attributes:
        mode: ``"fold"`` or ``"slot"``; strength, positions, operation, vectors: as attached or set.
    """

    @property
    def strength(self) -> float:
        return self.bank.strength

    @property
    def vectors(self) -> Any:
        """As they were given, one `SteeringVectors` or all of them by name."""
        experts = self.bank.experts
        return experts[0] if list(experts) == [0] else experts

    def set(
        self,
        strength: float | str | None = None,
        positions: Positions | None = None,
        *,
        vectors: Any = None,
        prompt_length: int | Tensor | None = _KEEP,
    ) -> Steering:
        """Change the strength, the positions or the vectors; what is not given stays.

        Args:
            vectors: others for the same names, layers and width.
            prompt_length: where the prompt ends, in tokens including padding, for forward passes
                outside ``generate`` (scoring a continuation): int, or ``[batch]`` ints; ``None``
                takes it back. ``generate`` knows its own.

        Raises:
            ValueError: a strength that is not finite, unknown positions, other layers, a
                negative prompt length; positions that ``mode="fold"`` cannot serve. Nothing is
                changed then.
            RuntimeError: after ``detach``; states on a GPU that were not finite since the last
                change.
        """
        self._require_attached()
        self.watched.require_finite(self.bank)
        if positions is not None:
            positions = checked_positions(positions)
        if prompt_length is not _KEEP:
            prompt_length = checked_prompt_length(prompt_length)
        experts = self.bank.experts if vectors is None else self._others(vectors)
        if strength is None:
            strength = self.strength
        strength = resolved_strength(strength, experts, self.operation, looks=False)
        slots = not (positions is None or (isinstance(positions, str) and positions == "all"))
        self._require_slots(slots)
        with self._changing():
            self.bank.fill(experts, strength)
            if positions is not None:
                self.positions = positions
                self.traced.set_positions(positions)
            if prompt_length is not _KEEP:
                self.prompt_length = prompt_length
                self.traced.set_prompt(prompt_length)
            self._refill(slots)
        return self

    def set_rows(
        self, rows: Sequence[Any] | None, strengths: Sequence[float] | None = None
    ) -> Steering:
        """Choose the vectors of each sequence of the batches to come.

        Args:
            rows: one entry per sequence: a name (or, where vectors came in a list, its place from
                0), ``None`` for an unsteered sequence, a list of names that are all added, or
                ``{name: strength}``. ``None`` goes back to all vectors for every sequence.
            strengths: one factor per sequence, beside the steering's own strength.

        Raises:
            ValueError: an unknown name, other numbers of strengths than rows, one that is not
                finite, ``mode="fold"``. Nothing is changed then.
        """
        self._require_attached()
        self._require_slots(rows is not None)
        with self._changing():
            self.bank.set_rows(rows, strengths)
            self._refill(rows is not None)
        return self

    def fold(self) -> nn.Module:
        """Make the steering permanent and detach; returns a model whose own weights carry it.

        Its ``save_pretrained`` writes a checkpoint that stock transformers loads. Families with a
        place for the bias are changed in place and returned; the others come back as a new model
        of another family, which shares the weights, and the given model is as it was.

        Raises:
            ValueError: with the reason, where the family cannot carry it or what is set is not one
                constant vector per layer at all positions. The steering stays then.
        """
        path = self.decoder.layers_path
        with self._changing():
            added = SteeringVectors({i: self.bank.displacement(i) for i in self.bank.layers})
            self.put_back()
            reason = self._why_not_constant() or why_not_permanent(self.model, path)
            if reason:
                raise ValueError(f"this steering cannot be folded into the weights: {reason}")
            self.detach()
        return fold_permanently(self.model, added, 1.0, decoder_layers=path)

    def __enter__(self) -> Steering:
        self._require_attached()
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _require_slots(self, needed: bool) -> None:
        if needed and self.mode == "fold" and self.fixed:
            raise ValueError(
                'mode="fold" adds the same vectors at all positions of every sequence; attach with '
                'mode="slot" or "auto" for other positions or vectors per sequence'
            )

    def _others(self, vectors: Any) -> dict[Any, SteeringVectors]:
        """Vectors in the place of the attached ones."""
        experts = by_name(vectors)
        if list(experts) != list(self.bank.experts):
            raise ValueError(
                f"vectors must be given for {list(self.bank.experts)} like the attached ones, came "
                f"{list(experts)}; detach and attach those instead"
            )
        for name, other in experts.items():
            require_effect(other)
            old = self.bank.experts[name]
            if other.layers != old.layers or other.width != old.width:
                raise ValueError(
                    f"vectors must steer layers {old.layers} at width {old.width} like the "
                    f"attached ones, came {other.layers} at {other.width}; detach and attach "
                    "those instead"
                )
        return experts

    def _why_not_constant(self) -> str | None:
        if self.operation != "add" or self.bank.gate is not None:
            return "only an ungated addition is a bias"
        if not isinstance(self.positions, str) or self.positions != "all":
            return 'only positions="all" is a bias'
        return None if self.bank.sequences == 1 else "set_rows chose vectors per sequence"
