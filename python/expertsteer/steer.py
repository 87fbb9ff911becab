"""Step 4: add the vectors to the target's hidden states while it runs.

Slots are put in the place of the ``forward`` of the steered layers once, and only their contents
change afterwards. One more, around the decoder, works out per forward pass which tokens are
steered, for all layers together. Leaving the context manager puts back what was there.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ._positions import POSITIONS, Passes
from ._slots import DecoderSlot, GenerateSlot, LayerSlot
from .artifacts import require_finite
from .vectors import SteeringVectors

_KEEP: Any = object()  # an argument that was not given, where None means something
_attached: weakref.WeakKeyDictionary[nn.Module, Steering] = weakref.WeakKeyDictionary()


def attach(
    model: nn.Module,
    vectors: SteeringVectors,
    *,
    strength: float = 1.0,
    positions: str = "all",
    decoder_layers: str | None = None,
    check_model: bool = True,
    backend: str = "auto",
) -> Steering:
    """Install steering slots in ``model``; use as a context manager, or call ``detach`` yourself.

    Args:
        model: a causal language model from transformers, in eager mode.
        vectors: what to add: at layer t ``strength * scales[t] * vectors[t]``.
        strength: with fitted vectors a pure number, in units of the median norm of the states.
        positions: ``"all"`` tokens, those of the ``"prompt"``, the ``"generated"`` ones, or
            ``"last"`` (the token each prediction is made from: the prompt's last and all
            generated ones). Never padding.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.
        check_model: refuse vectors whose metadata name another architecture or depth.
        backend: see `expertsteer.ops`.

    Forward passes in several threads keep their tokens apart; ``set`` is for all of them.
    One steering per model at a time: a second ``attach`` is refused. Add vectors together
    (``a + b``) to steer with several.

    Raises:
        ValueError: a layer out of range, another width, vectors fitted for another model, an
            unknown position, a strength that is not finite, a vector of zeros, a backend that
            cannot serve the model, a model already steered or compiled.
    """
    from .models import find_decoder

    if not isinstance(vectors, SteeringVectors):
        raise ValueError(f"vectors must be SteeringVectors, came {type(vectors).__name__}")
    decoder = find_decoder(model, decoder_layers)
    if decoder.decoder in _attached:
        raise ValueError(
            "this model is already steered; leave the other attach first, or attach the sum of "
            "both vectors (a + b)"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "this model was compiled before attaching and would ignore the slots; attach to the "
            "uncompiled model"
        )
    _require_effect(vectors)
    _check_fit(model, vectors, decoder, check_model)
    steering = Steering(model, decoder, vectors, backend)
    steering.set(strength=strength, positions=positions)
    steering._install()
    return steering


class _Pass(threading.local):
    """What one thread's current forward pass has told: the tokens to steer, the prompt."""

    def __init__(self) -> None:
        self.passes = Passes()
        self.active = False
        self.mask: Tensor | None = None


class Steering:
    """Slots installed in a model. Made by `attach`; ``set`` changes what they add."""

    def __init__(self, model: nn.Module, decoder: Any, vectors: SteeringVectors, backend: str):
        self.model, self._decoder = model, decoder.decoder
        self.slots = {i: LayerSlot(self, i, decoder.layers[i], backend) for i in vectors.layers}
        self._restore: list[tuple[nn.Module, str, Any]] = []
        self._detached = False
        self.current = _Pass()
        self.vectors = vectors
        self.strength = 0.0
        self.positions = "all"
        self.prompt_length: int | Tensor | None = None

    @property
    def attached(self) -> bool:
        return bool(self._restore)

    def set(
        self,
        strength: float | None = None,
        positions: str | None = None,
        *,
        vectors: SteeringVectors | None = None,
        prompt_length: int | Tensor | None = _KEEP,
    ) -> Steering:
        """Change the strength, the positions or the vectors; what is not given stays.

        Args:
            vectors: others for the same layers and width.
            prompt_length: where the prompt ends, in tokens including padding, for forward passes
                outside ``generate`` (scoring a continuation): int, or ``[batch]`` ints; ``None``
                takes it back. ``generate`` knows its own.

        Raises:
            ValueError: a strength that is not finite, an unknown position, other layers, a
                negative prompt length. Nothing is changed then.
            RuntimeError: after ``detach``.
        """
        self._require_attached()
        if strength is not None and not abs(float(strength)) < float("inf"):
            raise ValueError(f"strength must be a finite number, came {strength}")
        if positions is not None and positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}, came {positions!r}")
        if prompt_length is not _KEEP:
            prompt_length = _checked_prompt_length(prompt_length)
        if vectors is not None:
            _require_effect(vectors)
            if vectors.layers != self.vectors.layers or vectors.width != self.vectors.width:
                raise ValueError(
                    f"vectors must steer layers {self.vectors.layers} at width "
                    f"{self.vectors.width} like the attached ones, came {vectors.layers} at "
                    f"{vectors.width}; detach and attach those instead"
                )
        new_vectors = self.vectors if vectors is None else vectors
        new_strength = self.strength if strength is None else float(strength)
        filled = {i: new_strength * new_vectors.displacement(i) for i in self.slots}
        for layer, displacement in filled.items():
            require_finite(f"strength * scale * vector at layer {layer}", displacement)
        self.vectors, self.strength = new_vectors, new_strength
        if positions is not None:
            self.positions = positions
        if prompt_length is not _KEEP:
            self.prompt_length = prompt_length
        for layer, displacement in filled.items():
            self.slots[layer].fill(displacement)
        return self

    def detach(self) -> None:
        """Put back everything that was replaced; harmless when called twice."""
        for owner, name, previous in reversed(self._restore):
            if previous is None:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = previous
        self._restore.clear()
        self._detached = True
        _attached.pop(self._decoder, None)

    def __enter__(self) -> Steering:
        self._require_attached()
        return self

    def _require_attached(self) -> None:
        if self._detached:
            raise RuntimeError("this steering was detached; attach again to steer")

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _install(self) -> None:
        for slot in self.slots.values():
            self._replace(slot.layer, "forward", slot)
        self._replace(self._decoder, "forward", DecoderSlot(self, self._decoder.forward))
        if hasattr(self.model, "generate"):
            self._replace(self.model, "generate", GenerateSlot(self, self.model.generate))
        _attached[self._decoder] = self

    def _replace(self, owner: nn.Module, name: str, slot: Any) -> None:
        # Instance attributes only: the class, and any other model, never notice.
        self._restore.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = slot


def _checked_prompt_length(length: Any) -> int | Tensor | None:
    if length is None or (type(length) is int and length >= 0):
        return length
    lengths = torch.as_tensor(length) if isinstance(length, (list, tuple, Tensor)) else None
    whole = lengths is not None and not (lengths.is_floating_point() or lengths.is_complex())
    if not whole or lengths.ndim != 1 or bool((lengths < 0).any()):
        raise ValueError(
            "prompt_length must be a number of tokens, one per sequence ([batch]), or None; came "
            f"{length!r}"
        )
    return lengths.to(torch.int64)


def _require_effect(vectors: SteeringVectors) -> None:
    idle = [layer for layer, vector in vectors.vectors.items() if not bool((vector != 0).any())]
    if idle:
        raise ValueError(f"vectors at layers {idle} are all zero and would have no effect")


def _check_fit(model: nn.Module, vectors: SteeringVectors, decoder: Any, check_model: bool) -> None:
    from .models import describe, hidden_size

    depth = len(decoder.layers)
    for layer in vectors.layers:
        if layer >= depth:
            raise ValueError(
                f"vectors: layer {layer} is out of range for a model with {depth} layers "
                f"(0..{depth - 1})"
            )
    width = hidden_size(model)
    if vectors.width != width:
        raise ValueError(
            f"vectors have width {vectors.width}, the model's hidden size is {width}; they were "
            "fitted for another model"
        )
    fitted_for = vectors.metadata.get("target") or {}
    here = describe(model, decoder.layers_path)
    for name in ("architecture", "num_layers"):
        if check_model and name in fitted_for and fitted_for[name] != here.get(name):
            raise ValueError(
                f"vectors were fitted for a model with {name} {fitted_for[name]!r}, this one has "
                f"{here.get(name)!r}; pass check_model=False to steer it all the same"
            )
