"""A steering vector as the bias of a layer's last linear: no hook, no kernel, no recompilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_sum

from ..models.stand_ins import Uncopied, Unmovable, put_back
from .families import Ending

_MARK = "_expertsteer_fold"


class Fold(Uncopied):
    """The bias of one layer's last linear, with contents that change in place.

    A linear without a bias gets one of zeros in the type of its weight: a buffer that is not
    saved, so that ``state_dict`` and ``save_pretrained`` of the live model keep their keys and
    hold the unsteered model.

    A bias that the linear has stays untouched, whatever trains, loads or writes it: the vector is
    added to it on its way into every pass, a sum of as many numbers as the model is wide.

    The vector reaches padding too. The attention mask keeps real tokens from seeing it; the states
    at padding itself do differ from those of a slot.

    Compiled code and CUDA graphs recorded after `install` see every later ``write``; code
    compiled before recompiles once. Inductor's ``freezing``, which copies weights into the
    graph, does not see it.

    Args:
        model: a causal language model from transformers.
        layer: index of the decoder layer, from 0.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.

    Raises:
        ValueError: with the reason, where `why_not_foldable` gives one.
    """

    def __init__(self, model: nn.Module, layer: int, decoder_layers: str | None = None):
        self.layer = layer
        self.ending = Ending(model, layer, decoder_layers)
        self.linear: Any = self.ending.linear
        self._removed = False
        self.place = _NewBias(self.linear) if self.linear.bias is None else _OwnBias(self.linear)
        self.width: int = self.place.width

    def install(self) -> Fold:
        """Make the place for the vector, which is zero until `write`."""
        self.linear.__dict__[_MARK] = self
        self.place.install()
        return self

    def write(self, displacement: Tensor) -> None:
        """Set what is added to the layer's output at every position.

        Args:
            displacement: ``[d]``, any floating-point type and device; added to an existing bias
                in single precision or wider and rounded once, to the type of the weights.

        Raises:
            ValueError: another shape or type; entries that are not finite, or are not in the
                type of the weights. Nothing is changed then.
            RuntimeError: after `remove`, or where somebody replaced the bias meanwhile.
        """
        if self._removed:
            raise RuntimeError("this fold was removed; make another one to steer")
        if displacement.shape != (self.width,) or not displacement.is_floating_point():
            raise ValueError(
                f"displacement must be a floating-point tensor [{self.width}] for layer "
                f"{self.layer}, came {tuple(displacement.shape)} of {displacement.dtype}"
            )
        if reason := self.place.why_lost():
            raise RuntimeError(f"layer {self.layer}: {reason}; detach, and attach again")
        with torch.inference_mode(False), torch.no_grad():
            displacement = displacement.detach().cpu()
            if not bool(self.place.total(displacement).isfinite().all()):
                raise ValueError(
                    f"displacement at layer {self.layer}: the bias would not be finite in "
                    f"{self.place.dtype}; lower the strength, or use a wider type"
                )
            self.place.write(displacement)

    def why_no_longer(self) -> str | None:
        """Why a bias here does not steer the layer any more; ``None`` while it does."""
        reason = self.place.why_lost() or self.ending.why_lost()
        return reason and f"layer {self.layer}: {reason}"

    def remove(self) -> None:
        """Put the linear back as it was, bit for bit; harmless when called twice."""
        if not self._removed:
            self.place.remove()
            self.linear.__dict__.pop(_MARK, None)
            self._removed = True


class _NewBias:
    """A buffer as the bias of a linear that has none.

    Both ways the one of the two names that counts is changed in one step, so that a pass of another
    thread, or whoever is interrupted, never finds a linear without either.
    """

    def __init__(self, linear: Any):
        self.linear = linear
        weight = linear.weight
        self.width: int = weight.shape[0]  # Conv1D always has a bias, so the rows are the outputs
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._zeros = torch.zeros(self.width, dtype=weight.dtype, device=weight.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.linear.bias.dtype

    def install(self) -> None:
        linear = self.linear
        linear._non_persistent_buffers_set.add("bias")
        linear._buffers["bias"] = self._zeros
        linear._parameters.pop("bias", None)  # a parameter would be found first

    def remove(self) -> None:
        linear = self.linear
        if linear._parameters.get("bias") is None:  # else it was given one of its own
            linear._parameters["bias"] = None
            linear._buffers.pop("bias", None)
            linear._non_persistent_buffers_set.discard("bias")

    def why_lost(self) -> str | None:
        own, ours = self.linear._parameters.get("bias"), self.linear._buffers.get("bias")
        return None if own is None and ours is not None else "its last linear got another bias"

    def total(self, displacement: Tensor) -> Tensor:
        return displacement.to(self.dtype)

    def write(self, displacement: Tensor) -> None:
        self.linear.bias.copy_(self.total(displacement))


class _OwnBias:
    """The vector beside the bias that a linear has."""

    def __init__(self, linear: Any):
        self.linear = linear
        self.width: int = linear.bias.shape[0]
        self._stand_in = _SummedForward(linear)

    @property
    def dtype(self) -> torch.dtype:
        return self.linear.bias.dtype

    def install(self) -> None:
        self.linear.__dict__["forward"] = self._stand_in

    def remove(self) -> None:
        put_back(self.linear, "forward", None, self._stand_in)

    def why_lost(self) -> str | None:
        return "its last linear lost its bias" if self.linear.bias is None else None

    def total(self, displacement: Tensor) -> Tensor:
        return rounded_sum(self.linear.bias.detach().cpu(), displacement, self.dtype)

    def write(self, displacement: Tensor) -> None:
        # -0.0 is the one number that leaves every other its bits.
        added = torch.where(displacement == 0, -0.0, displacement)
        added = added.to(self.linear.bias.device, torch.promote_types(self.dtype, torch.float32))
        kept = self._stand_in.added
        if (kept.dtype, kept.device) == (added.dtype, added.device):
            kept.copy_(added)
        else:
            self._stand_in.added = added


class _SummedForward(Unmovable):
    """The forward of a linear, with the vector added to its bias."""

    def __init__(self, linear: Any):
        self.linear, self.original = linear, linear.forward
        self.function = _FUNCTIONS[type(linear).__name__]
        self.off = False
        bias = linear.bias
        with torch.inference_mode(False), torch.no_grad():
            shape, dtype = bias.shape, torch.promote_types(bias.dtype, torch.float32)
            self.added = torch.full(shape, -0.0, dtype=dtype, device=bias.device)

    def __call__(self, states: Tensor) -> Tensor:
        if self.off:
            return self.original(states)
        bias, weight = self.linear.bias, self.linear.weight
        if self.added.device != bias.device:  # the model was moved
            self.added = self.added.to(bias.device)
        return self.function(states, weight, (bias + self.added).to(bias.dtype))


def _conv1d(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transformers' ``Conv1D``, whose weight is ``[inner, d]``."""
    flat = torch.addmm(bias, states.reshape(-1, states.shape[-1]), weight)
    return flat.reshape(*states.shape[:-1], -1)


def _falcon(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Falcon rounds the product before it adds the bias."""
    return states @ weight.T + bias


_FUNCTIONS: dict[str, Callable] = {
    "Linear": linear_sum,
    "Conv1D": _conv1d,
    "FalconLinear": _falcon,
}


def rounded_sum(original: Tensor | None, displacement: Tensor, dtype: torch.dtype) -> Tensor:
    """``original + displacement`` in ``dtype``, rounded once."""
    if original is None:
        return displacement.to(dtype)
    if not bool(displacement.any()):  # -0.0 + 0.0 would lose its sign
        return original.to(dtype)
    wide = torch.float64 if torch.float64 in (displacement.dtype, dtype) else torch.float32
    return (original.to(wide) + displacement.to(wide)).to(dtype)
