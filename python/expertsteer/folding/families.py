"""Which decoder layers end in ``residual + linear(...)``, and where that linear is.

There a constant vector at every position is a bias. The tables are of transformers' own modules:
the family is the module that defines the layer's class, so that changed code under a known name
is not mistaken for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import nn

from ..models.decoder import find_decoder, uncompiled, unwrapped

_USE_SLOT = "use mode='slot'"
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LastLinear:
    """Where a family's layers end.

    Attributes:
        path: dotted path of the last linear inside the layer.
        dropout: dotted path of the probability, or of the module, that drops entries between the
            linear and the residual; empty where nothing does.
        unless: reason why this very layer cannot be folded, or ``None``.
    """

    path: str
    dropout: str = ""
    unless: Callable[[Any], str | None] = lambda layer: None


def _opt(layer: Any) -> str | None:
    return None if layer.do_layer_norm_before else f"{_NORM} (do_layer_norm_before=False)"


def _bloom(layer: Any) -> str | None:
    if layer.mlp.pretraining_tp > 1 and layer.mlp.slow_but_exact:
        return "slow_but_exact with pretraining_tp > 1 leaves the linear's bias out"
    return None


def _hy_v3(layer: Any) -> str | None:
    return None if hasattr(layer.mlp, "down_proj") else _EXPERTS


def _mamba(layer: Any) -> str | None:
    # The fused kernel of a training pass asks the configuration, not the linear, for a bias.
    if layer.training and not layer.mixer.use_bias:
        return "its training kernel reads no bias of the last linear (call model.eval())"
    return None


_NORM = "a norm follows the MLP"
_EXPERTS = "the block ends in a mixture of experts"
_SCALED = "the MLP's output is scaled before it is added"
_GATED_MLP = LastLinear("mlp.down_proj")
_C_PROJ = LastLinear("mlp.c_proj", "mlp.dropout")
_FC_OUT = LastLinear("mlp.fc_out", "mlp.dropout")

FOLDABLE: dict[str, LastLinear] = {
    "arcee": _GATED_MLP,
    "bloom": LastLinear("mlp.dense_4h_to_h", "mlp.hidden_dropout", _bloom),
    "codegen": _FC_OUT,
    "cohere": _GATED_MLP,
    "falcon": LastLinear("mlp.dense_4h_to_h", "hidden_dropout"),
    "gemma": _GATED_MLP,
    "glm": _GATED_MLP,
    "gpt2": _C_PROJ,
    "gpt_bigcode": _C_PROJ,
    "gpt_neo": _C_PROJ,
    "gpt_neox": LastLinear("mlp.dense_4h_to_h", "post_mlp_dropout"),
    "gptj": _FC_OUT,
    "helium": _GATED_MLP,
    "hunyuan_v1_dense": _GATED_MLP,
    "hy_v3": LastLinear("mlp.down_proj", unless=_hy_v3),
    "llama": _GATED_MLP,
    "mamba": LastLinear("mixer.out_proj", unless=_mamba),
    "ministral": _GATED_MLP,
    "mistral": _GATED_MLP,
    "mpt": LastLinear("ffn.down_proj", "ffn.hidden_dropout"),
    "nemotron": _GATED_MLP,
    "olmo": _GATED_MLP,
    "opt": LastLinear("fc2", "dropout", _opt),
    "phi": LastLinear("mlp.fc2", "resid_dropout"),
    "phi3": LastLinear("mlp.down_proj", "resid_mlp_dropout"),
    "qwen2": _GATED_MLP,
    "qwen3": _GATED_MLP,
    "seed_oss": LastLinear("mlp.down_proj", "mlp.residual_dropout"),
    "smollm3": _GATED_MLP,
    "stablelm": LastLinear("mlp.down_proj", "dropout"),
    "starcoder2": LastLinear("mlp.c_proj", "mlp.residual_dropout"),
}

REFUSED: dict[str, str] = {
    "exaone4": _NORM,
    "gemma2": _NORM,
    "gemma3": _NORM,
    "glm4": _NORM,
    "granite": _SCALED,
    "mixtral": _EXPERTS,
    "minicpm3": _SCALED,
    "olmo2": _NORM,
    "olmo3": _NORM,
    "olmoe": _EXPERTS,
    "phimoe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "rwkv": "a gate multiplies the output of the last linear",
}


def family_of(layer: nn.Module) -> str | None:
    """The family whose modelling file in transformers defines the layer's class, or ``None``."""
    parts = type(uncompiled(layer)).__module__.split(".")
    return parts[2] if parts[:2] == ["transformers", "models"] and len(parts) == 4 else None


def why_not_foldable(model: nn.Module, layer: int, decoder_layers: str | None = None) -> str | None:
    """Why a constant vector at the output of a layer cannot be a bias; ``None`` where it can.

    Args:
        model: a causal language model from transformers, compiled or not.
        layer: index of the decoder layer, from 0.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.

    Dropout between the linear and the residual refuses only a model in training mode: call
    ``model.eval()`` first.

    Raises:
        ValueError: no decoder layers found, ``layer`` out of range.
    """
    block = _layer(model, layer, decoder_layers)
    family = family_of(block)
    if family not in FOLDABLE:
        name = family or type(block).__name__
        known = REFUSED.get(name)
        reason = f"unknown family {name!r}" if known is None else f"{name}: {known}"
        return f"{reason}; {_USE_SLOT}"
    entry = FOLDABLE[family]
    reason = entry.unless(block) or _dropped(block, entry.dropout)
    reason = reason or _why_not_linear(model, walk(block, entry.path))
    return reason and f"{family}: {reason}; {_USE_SLOT}"


def last_linear(model: nn.Module, layer: int, decoder_layers: str | None = None) -> nn.Module:
    """The linear whose bias is added to the output of a decoder layer: weight ``[d, inner]``, or
    ``[inner, d]`` in the families with transformers' ``Conv1D``.

    Raises:
        ValueError: as `why_not_foldable`, and with its reason where the layer is not foldable.
    """
    reason = why_not_foldable(model, layer, decoder_layers)
    if reason is not None:
        raise ValueError(f"layer {layer} cannot be folded: {reason}")
    block = _layer(model, layer, decoder_layers)
    return walk(block, FOLDABLE[family_of(block)].path)


class Link(NamedTuple):
    """One step on the way from the list of layers to a linear: ``modules[name] is module``."""

    modules: dict[str, Any]
    name: str
    module: Any


class Ending:
    """The last linear of one layer, and whether what is added to its bias is still added.

    Raises:
        ValueError: see `last_linear`.
    """

    def __init__(self, model: nn.Module, layer: int, decoder_layers: str | None = None):
        self.linear: Any = last_linear(model, layer, decoder_layers)
        self._block = block = _layer(model, layer, decoder_layers)
        self._entry = FOLDABLE[family_of(block)]
        found = find_decoder(model, decoder_layers)
        layers = unwrapped(model).get_submodule(found.layers_path)._modules
        self._chain = [Link(layers, list(layers)[layer], found.layers[layer])]
        here = block
        for name in self._entry.path.split("."):
            self._chain.append(Link(here._modules, name, here._modules[name]))
            here = uncompiled(here._modules[name])
        self._dropper = _dropper(block, self._entry.dropout)

    def why_lost(self) -> str | None:
        """Asked at every pass, so that nothing is looked at twice where all is as it was."""
        for modules, name, module in self._chain:
            if modules.get(name) is not module and not self._inside(modules.get(name)):
                return "its last linear was replaced"
        if self._block.training or self._dropper.training:
            return self._entry.unless(self._block) or _dropped(self._block, self._entry.dropout)
        return None

    def _inside(self, module: Any) -> bool:
        """Whether the linear is a part of what was put in its place (an adapter)."""
        return module is not None and any(part is self.linear for part in module.modules())


def _layer(model: nn.Module, index: int, decoder_layers: str | None) -> Any:
    found = find_decoder(model, decoder_layers)
    if type(index) is not int or not 0 <= index < len(found):
        raise ValueError(
            f"layer: {index!r} is out of range for a model with {len(found)} layers "
            f"(0..{len(found) - 1})"
        )
    return uncompiled(found.layers[index])


def walk(module: Any, path: str) -> Any:
    """The module or attribute at a dotted path, through what `torch.compile` has wrapped."""
    names = path.split(".") if path else []
    return reduce(lambda here, name: uncompiled(getattr(here, name)), names, module)


def _dropper(block: Any, path: str) -> Any:
    """The module whose training mode says whether entries are dropped."""
    if not path:
        return block
    dropout = walk(block, path)
    return dropout if isinstance(dropout, nn.Module) else walk(block, path.rpartition(".")[0])


def _dropped(block: Any, path: str) -> str | None:
    if not path or not _dropper(block, path).training:
        return None
    dropout = walk(block, path)
    rate = dropout.p if isinstance(dropout, nn.Dropout) else dropout
    if rate == 0:
        return None
    return f"dropout of {rate} follows the last linear in training mode (call model.eval())"


def why_not_plain(linear: Any) -> str | None:
    """What keeps a linear from taking a bias: its kind, its weight; ``None`` where nothing does."""
    kind = type(linear)
    if kind is not nn.Linear and kind.__name__ not in ("Conv1D", "FalconLinear"):
        return f"{kind.__module__}.{kind.__name__} stands where a plain linear is expected"
    weight = linear.weight
    if type(weight) not in (nn.Parameter, torch.Tensor) or weight.dtype not in _TYPES:
        return (
            f"the weight of the linear is a {type(weight).__name__} of {weight.dtype} (quantised "
            "or sharded), not a plain floating-point tensor"
        )
    if weight.is_meta:
        return "the linear is offloaded or not loaded (device 'meta')"
    return None


def _why_not_linear(model: nn.Module, linear: Any) -> str | None:
    reason = why_not_plain(linear)
    if reason is not None:
        return reason
    if "_expertsteer_fold" in linear.__dict__:
        return "its last linear is folded already (remove that fold first)"
    model = unwrapped(model)
    modules = (module for _, module in model.named_modules(remove_duplicate=False))
    if sum(module is linear for module in modules) > 1:
        return "its last linear is shared with another part of the model"
    biases = (bias for _, bias in model.named_parameters(remove_duplicate=False))
    if linear.bias is None:
        return None
    if sum(bias is linear.bias for bias in biases) > 1:
        return "the bias of its last linear is shared with another part of the model"
    if "forward" in linear.__dict__:
        return "the forward of its last linear was replaced, and may not read its bias"
    return None
