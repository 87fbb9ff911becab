"""Step 4: add the vectors to the target's hidden states while it runs.

Slots are put in the place of the ``forward`` of the steered layers once, and only their contents
change afterwards. One more, around the decoder, works out per forward pass which tokens are
steered, for all layers together. Leaving the context manager puts back what was there.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._positions import POSITIONS, Passes, token_mask
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
        self._model, self._decoder = model, decoder.decoder
        self._slots = {i: _LayerSlot(self, i, decoder.layers[i], backend) for i in vectors.layers}
        self._restore: list[tuple[nn.Module, str, Any]] = []
        self._detached = False
        self._pass = _Pass()
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
        filled = {i: new_strength * new_vectors.displacement(i) for i in self._slots}
        for layer, displacement in filled.items():
            require_finite(f"strength * scale * vector at layer {layer}", displacement)
        self.vectors, self.strength = new_vectors, new_strength
        if positions is not None:
            self.positions = positions
        if prompt_length is not _KEEP:
            self.prompt_length = prompt_length
        for layer, displacement in filled.items():
            self._slots[layer].fill(displacement)
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
        for slot in self._slots.values():
            self._replace(slot.layer, "forward", slot)
        self._replace(self._decoder, "forward", _DecoderSlot(self, self._decoder.forward))
        if hasattr(self._model, "generate"):
            self._replace(self._model, "generate", _GenerateSlot(self, self._model.generate))
        _attached[self._decoder] = self

    def _replace(self, owner: nn.Module, name: str, slot: Any) -> None:
        # Instance attributes only: the class, and any other model, never notice.
        self._restore.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = slot


class _Slot:
    """Stands in for a method of a live model, so it must not travel with a copy of it."""

    def __deepcopy__(self, memo: Any):
        raise ValueError("a steered model cannot be deep-copied; detach the steering first")

    def __reduce__(self):
        raise ValueError("a steered model cannot be pickled; detach the steering first")


class _LayerSlot(_Slot):
    """A steered layer: its own forward, then the addition."""

    def __init__(self, steering: Steering, index: int, layer: nn.Module, backend: str):
        self.steering, self.index, self.layer, self.backend = steering, index, layer, backend
        self.original: Callable = layer.forward
        self.calls = 0
        self.delta: Tensor | None = None
        # Chosen now, so that a backend that cannot serve is refused when attaching.
        weight = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
        device = torch.device("cpu") if weight.device.type == "meta" else weight.device
        self._chosen = self._choose(device, weight.dtype)

    def _choose(self, device: torch.device, dtype: torch.dtype):
        return device, dtype, ops.choose("steer_add", self.backend, device, dtype)

    def fill(self, displacement: Tensor) -> None:
        """Set what is added, ``[width]``; taken to the states' device and type when they come."""
        self.source = displacement.detach()
        self.delta = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.steering.strength == 0.0:  # not even rounding
            return self.original(*args, **kwargs)
        if not self.steering._pass.active:
            raise RuntimeError(
                f"layer {self.index} of a steered model was called outside its decoder's forward, "
                "where its padding and positions are unknown; call the model, or detach"
            )
        self.calls += 1
        output = self.original(*args, **kwargs)
        if isinstance(output, tuple):
            return (self._add(output[0]), *output[1:])
        return self._add(output)

    def _add(self, hidden: Tensor) -> Tensor:
        if self._chosen[:2] != (hidden.device, hidden.dtype):
            self._chosen = self._choose(hidden.device, hidden.dtype)
            self.delta = None
        if self.delta is None:
            wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            self.delta = self.source.to(hidden.device, wide).contiguous()
        mask = self.steering._pass.mask
        if mask is not None and mask.device != hidden.device:
            mask = mask.to(hidden.device)
        return self._chosen[2](hidden, self.delta, mask)


class _DecoderSlot(_Slot):
    """The decoder's forward: places the tokens first, checks afterwards that every slot ran."""

    def __init__(self, steering: Steering, original: Callable):
        self.steering, self.original = steering, original
        self.signature = self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        steering = self.steering
        if steering.strength == 0.0:
            return self.original(*args, **kwargs)
        inputs = _by_name(self.signature, args, kwargs)
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        before = {slot: slot.calls for slot in steering._slots.values()}
        here = steering._pass
        here.mask = token_mask(
            steering.positions,
            here.passes,
            inputs,
            tuple(tokens.shape[:2]),
            tokens.device,
            steering.prompt_length,
        )
        here.active = True
        try:
            output = self.original(*args, **kwargs)
        finally:
            here.active, here.mask = False, None
        idle = [slot.index for slot, calls in before.items() if slot.calls == calls]
        if idle:
            raise RuntimeError(
                f"layers {idle} carry a vector but did not run in this forward pass, so the "
                "output is not the steered one"
            )
        return output


class _GenerateSlot(_Slot):
    """``generate``: remembers the prompt, so that later passes know which tokens are new."""

    def __init__(self, steering: Steering, original: Callable):
        self.steering, self.original = steering, original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = self.steering._pass
        outer, here.passes = here.passes, Passes.of_generate(self.steering._model, args, kwargs)
        try:
            return self.original(*args, **kwargs)
        finally:
            here.passes = outer


def _by_name(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments by name, those swallowed by ``**kwargs`` included."""
    return dict(zip(signature.parameters, args)) | kwargs


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
