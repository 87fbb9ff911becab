"""Step 4: add the vectors to the target's hidden states while it runs.

Slots are put in the place of the ``forward`` of the steered layers once, and only their contents
change afterwards. One more, around the decoder, works out per forward pass which tokens are
steered, for all layers together. Leaving the context manager puts back what was there.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._positions import POSITIONS, Passes, token_mask
from .vectors import SteeringVectors

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

    One steering per model at a time: a second ``attach`` is refused. Add vectors together
    (``a + b``) to steer with several.

    Raises:
        ValueError: a layer out of range, another width, vectors fitted for another model, an
            unknown position, a strength that is not finite, a model already steered or compiled.
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
    _check_fit(model, vectors, decoder, check_model)
    steering = Steering(model, decoder, vectors, backend)
    steering.set(strength=strength, positions=positions)
    steering._install()
    return steering


class Steering:
    """Slots installed in a model. Made by `attach`; ``set`` changes what they add."""

    def __init__(self, model: nn.Module, decoder: Any, vectors: SteeringVectors, backend: str):
        self._model, self._decoder = model, decoder.decoder
        self._slots = {i: _LayerSlot(self, i, decoder.layers[i], backend) for i in vectors.layers}
        self._restore: list[tuple[nn.Module, str, Any]] = []
        self._passes = Passes()
        self._in_pass = False
        self._mask: Tensor | None = None
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
        prompt_length: int | Tensor | None = None,
    ) -> Steering:
        """Change the strength, the positions or the vectors; what is not given stays.

        Args:
            vectors: others for the same layers and width.
            prompt_length: where the prompt ends, in tokens including padding, for forward passes
                outside ``generate`` (scoring a continuation): int, or ``[batch]`` ints.

        Raises:
            ValueError: a strength that is not finite, an unknown position, other layers.
        """
        if strength is not None:
            if not abs(float(strength)) < float("inf"):
                raise ValueError(f"strength must be a finite number, came {strength}")
            self.strength = float(strength)
        if positions is not None:
            if positions not in POSITIONS:
                raise ValueError(f"positions must be one of {POSITIONS}, came {positions!r}")
            self.positions = positions
        if vectors is not None:
            if vectors.layers != self.vectors.layers or vectors.width != self.vectors.width:
                raise ValueError(
                    f"vectors must steer layers {self.vectors.layers} at width "
                    f"{self.vectors.width} like the attached ones, came {vectors.layers} at "
                    f"{vectors.width}; detach and attach those instead"
                )
            self.vectors = vectors
        if prompt_length is not None:
            self.prompt_length = prompt_length
        for layer, slot in self._slots.items():
            slot.fill(self.strength * self.vectors.displacement(layer))
        return self

    def detach(self) -> None:
        """Put back everything that was replaced; harmless when called twice."""
        for owner, name, previous in reversed(self._restore):
            if previous is None:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = previous
        self._restore.clear()
        _attached.pop(self._decoder, None)

    def __enter__(self) -> Steering:
        return self

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
        self._chosen: tuple[torch.device, torch.dtype, Callable] | None = None

    def fill(self, displacement: Tensor) -> None:
        """Set what is added, ``[width]``; taken to the states' device and type when they come."""
        self.source = displacement.detach()
        self.delta = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.steering.strength == 0.0:  # not even rounding
            return self.original(*args, **kwargs)
        if not self.steering._in_pass:
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
        if self._chosen is None or self._chosen[:2] != (hidden.device, hidden.dtype):
            add = ops.choose("steer_add", self.backend, hidden.device, hidden.dtype)
            self._chosen = (hidden.device, hidden.dtype, add)
            self.delta = None
        if self.delta is None:
            wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            self.delta = self.source.to(hidden.device, wide).contiguous()
        mask = self.steering._mask
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
        steering._mask = token_mask(
            steering.positions,
            steering._passes,
            inputs,
            tuple(tokens.shape[:2]),
            tokens.device,
            steering.prompt_length,
        )
        steering._in_pass = True
        try:
            output = self.original(*args, **kwargs)
        finally:
            steering._in_pass = False
            steering._mask = None
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
        outer = self.steering._passes
        self.steering._passes = Passes.of_generate(args, kwargs)
        try:
            return self.original(*args, **kwargs)
        finally:
            self.steering._passes = outer


def _by_name(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments by name, those swallowed by ``**kwargs`` included."""
    return dict(zip(signature.parameters, args)) | kwargs


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
