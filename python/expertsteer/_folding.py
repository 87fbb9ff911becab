"""A steering vector as the bias of a layer's last linear: no hook, no kernel, no recompilation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._foldable import last_linear


class Fold:
    """The bias of one layer's last linear, with contents that change in place.

    A linear without a bias gets one of zeros in the type of its weight: a buffer that is not
    saved, so that ``state_dict`` and ``save_pretrained`` of the live model keep their keys and
    hold the unsteered model. An existing bias stays the parameter it is; what is saved is its
    value without the vector, and what is loaded is steered from then on.

    The vector reaches padding too. The attention mask keeps real tokens from seeing it; the states
    at padding itself do differ from those of a slot.

    Compiled code and CUDA graphs recorded after this constructor see every later ``write``; code
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
        self.linear: Any = last_linear(model, layer, decoder_layers)
        self._original: Tensor | None = None
        self._displacement: Tensor | None = None
        self._hooks: list[Any] = []
        self._removed = False
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if self.linear.bias is None:
                self._add_buffer()
            else:
                self._original = _copy(self.linear.bias)
                self._watch_state_dict()
        self.width: int = self.linear.bias.shape[0]
        self.linear.__dict__["_expertsteer_fold"] = self

    def write(self, displacement: Tensor) -> None:
        """Set what is added to the layer's output at every position.

        Args:
            displacement: ``[d]``, any floating-point type and device; added to an existing bias
                in single precision or wider and rounded once, to the type of the weights.

        Raises:
            ValueError: another shape or type; entries that are not finite, or are not in the
                type of the weights. Nothing is changed then.
            RuntimeError: after `remove`.
        """
        if self._removed:
            raise RuntimeError("this fold was removed; make another one to steer")
        if displacement.shape != (self.width,) or not displacement.is_floating_point():
            raise ValueError(
                f"displacement must be a floating-point tensor [{self.width}] for layer "
                f"{self.layer}, came {tuple(displacement.shape)} of {displacement.dtype}"
            )
        bias = self.linear.bias
        displacement = displacement.detach().cpu()
        total = rounded_sum(self._original, displacement, bias.dtype)
        if not bool(total.isfinite().all()):
            raise ValueError(
                f"displacement at layer {self.layer}: the bias would not be finite in "
                f"{bias.dtype}; lower the strength, or use a wider type"
            )
        with torch.no_grad():
            bias.copy_(total)
        self._displacement = displacement

    def remove(self) -> None:
        """Put the linear back as it was, bit for bit; harmless when called twice."""
        if self._removed:
            return
        for hook in self._hooks:
            hook.remove()
        del self.linear.__dict__["_expertsteer_fold"]
        if self._original is None:
            del self.linear._buffers["bias"]
            self.linear.register_parameter("bias", None)
        else:
            self._restore_bias()
        self._removed = True

    def _add_buffer(self) -> None:
        weight = self.linear.weight
        # Conv1D always has a bias, so the rows are the outputs here.
        zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        del self.linear._parameters["bias"]
        self.linear.register_buffer("bias", zeros, persistent=False)

    def _watch_state_dict(self) -> None:
        # torch marks a hook of the state dict by an attribute, which a bound method cannot have.
        self._hooks = [
            self.linear.register_state_dict_post_hook(partial(Fold._saved, self)),
            self.linear.register_load_state_dict_pre_hook(self._before_load),
            self.linear.register_load_state_dict_post_hook(self._after_load),
        ]

    def _saved(self, linear: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        steered = state[f"{prefix}bias"]
        state[f"{prefix}bias"] = self._original.to(steered.device, steered.dtype)

    def _before_load(self, *arguments: Any) -> None:
        # A checkpoint without this bias must not leave the steered one as the original.
        self._restore_bias()

    def _after_load(self, *arguments: Any) -> None:
        self._original = _copy(self.linear.bias)
        if self._displacement is not None:
            self.write(self._displacement)

    def _restore_bias(self) -> None:
        with torch.no_grad():
            self.linear.bias.copy_(self._original)

    def __deepcopy__(self, memo: Any):
        raise ValueError("a steered model cannot be deep-copied; detach the steering first")

    def __reduce__(self):
        raise ValueError("a steered model cannot be pickled; detach the steering first")


def _copy(bias: Tensor) -> Tensor:
    return bias.detach().to("cpu", copy=True)


def rounded_sum(original: Tensor | None, displacement: Tensor, dtype: torch.dtype) -> Tensor:
    """``original + displacement`` in ``dtype``, rounded once."""
    if original is None:
        return displacement.to(dtype)
    if not bool(displacement.any()):  # -0.0 + 0.0 would lose its sign
        return original.to(dtype)
    wide = torch.float64 if torch.float64 in (displacement.dtype, dtype) else torch.float32
    return (original.to(wide) + displacement.to(wide)).to(dtype)
