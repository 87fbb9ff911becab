"""What stands in for the methods of a live model while it is steered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import ops
from ._positions import Passes, token_mask

if TYPE_CHECKING:
    from .steer import Steering


class _Slot:
    """Stands in for a method of a live model, so it must not travel with a copy of it."""

    def __deepcopy__(self, memo: Any):
        raise ValueError("a steered model cannot be deep-copied; detach the steering first")

    def __reduce__(self):
        raise ValueError("a steered model cannot be pickled; detach the steering first")


class LayerSlot(_Slot):
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
        if not self.steering.current.active:
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
        mask = self.steering.current.mask
        if mask is not None and mask.device != hidden.device:
            mask = mask.to(hidden.device)
        return self._chosen[2](hidden, self.delta, mask)


class DecoderSlot(_Slot):
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
        before = {slot: slot.calls for slot in steering.slots.values()}
        here = steering.current
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


class GenerateSlot(_Slot):
    """``generate``: remembers the prompt, so that later passes know which tokens are new."""

    def __init__(self, steering: Steering, original: Callable):
        self.steering, self.original = steering, original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = self.steering.current
        outer, here.passes = here.passes, Passes.of_generate(self.steering.model, args, kwargs)
        try:
            return self.original(*args, **kwargs)
        finally:
            here.passes = outer


def _by_name(signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The decoder's arguments by name, those swallowed by ``**kwargs`` included."""
    return dict(zip(signature.parameters, args)) | kwargs
