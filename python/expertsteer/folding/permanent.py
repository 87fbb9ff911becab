"""Steering for good: a checkpoint that stock transformers loads and that is steered by itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.decoder import DecoderLayers, find_decoder, uncompiled, unwrapped
from ..models.stand_ins import steerings_of
from ..support.arguments import finite_number
from ..vectors.vectors import SteeringVectors
from .conversions import CONVERTED, converted, why_not_converted
from .families import FOLDABLE, family_of, last_linear, walk, why_not_plain
from .fold import rounded_sum


@dataclass(frozen=True)
class BiasOption:
    """The option of a family's configuration that gives these linears of every layer a bias."""

    option: str
    linears: tuple[str, ...]


_GATED = BiasOption("mlp_bias", ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
_UNGATED = BiasOption("mlp_bias", ("mlp.up_proj", "mlp.down_proj"))
_QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")

OPTIONS: dict[str, BiasOption] = {
    "arcee": _UNGATED,
    "falcon": BiasOption(
        "bias",
        (
            "self_attention.query_key_value",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
    ),
    "helium": _GATED,
    "hy_v3": _GATED,
    "llama": _GATED,
    "mamba": BiasOption("use_bias", ("mixer.in_proj", "mixer.out_proj")),
    "nemotron": _UNGATED,
    "opt": BiasOption("enable_bias", (*_QKV, "self_attn.out_proj", "fc1", "fc2")),
    "seed_oss": _GATED,
    "smollm3": _GATED,
    "starcoder2": BiasOption("use_bias", (*_QKV, "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj")),
}
# Their last linear has a bias under every configuration.
ALWAYS = ("bloom", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "phi")

# How each family is written; the rest of the foldable ones have no stock form with the bias.
CHECKPOINTS: dict[str, str] = dict(
    sorted(
        (
            dict.fromkeys(ALWAYS, "as itself")
            | {name: f"as itself, with {entry.option}=True" for name, entry in OPTIONS.items()}
            | {name: f"as {target}" for name, target in CONVERTED.items()}
        ).items()
    )
)


def why_not_permanent(model: nn.Module, decoder_layers: str | None = None) -> str | None:
    """Why no stock checkpoint can hold the steered model; ``None`` where one can.

    Raises:
        ValueError: no decoder layers found.
    """
    model = unwrapped(model)
    found = find_decoder(model, decoder_layers)
    family = family_of(found.layers[0])
    if family not in FOLDABLE:
        return f"its layers ({type(uncompiled(found.layers[0])).__name__}) cannot be folded"
    if family not in CHECKPOINTS:
        return (
            f"{family} has no bias there in transformers, nor has a family that computes the same; "
            f"the families that work are {', '.join(CHECKPOINTS)}"
        )
    if getattr(model.config, "model_type", None) != family:
        return f"its decoder is a part of a {model.config.model_type} model"
    reason = _why_not_stock(model)
    if reason is not None:
        return reason
    if family in CONVERTED:
        return why_not_converted(model)
    if family == "hy_v3" and "sparse" in model.config.mlp_layer_types:
        return "its experts have no bias under the option that gives the dense layers one"
    for linear in _needing_bias(found, family):
        reason = why_not_plain(linear)
        if reason is not None:
            return reason
    return None


def _why_not_stock(model: Any) -> str | None:
    """Where saving would write names that a stock model of this configuration does not have."""
    kind = type(model)
    if not kind.__module__.startswith("transformers.models."):
        return f"{kind.__module__}.{kind.__name__} is not transformers' own (merge adapters first)"
    if model.get_output_embeddings() is None:
        return f"a {kind.__name__} has no language model head"
    with torch.device("meta"):
        stock = kind(copy.deepcopy(model.config))
    strange = sorted(set(model.state_dict()) ^ set(stock.state_dict()))
    if strange:
        return (
            f"its weights are not those of its configuration, for example {strange[0]!r} (merge "
            "adapters, undo quantisation)"
        )
    return None


@torch.no_grad()
def fold_permanently(
    model: nn.Module,
    vectors: SteeringVectors,
    strength: float = 1.0,
    decoder_layers: str | None = None,
) -> nn.Module:
    """Add the vectors to the model's own weights, at all positions, for good.

    ``save_pretrained`` of the result writes a checkpoint that `AutoModelForCausalLM` loads without
    this package and that gives the steered logits. `CHECKPOINTS` says how each family is written:
    as itself (then ``model`` is changed in place and returned), or as another stock family that
    computes the same function (then ``model`` stays as it is, and the result shares its weights).
    Type, generation settings and tied embeddings are kept. A converted model's folder needs
    the tokenizer saved next to it, since another family may have another default.

    Args:
        model: a causal language model from transformers, not steered at the moment.
        vectors: at layer t ``strength * scales[t] * vectors[t]`` is added.
        strength: a finite number.
        decoder_layers: dotted path of the layer list where it cannot be found by itself.

    Raises:
        ValueError: with the reason, where a layer cannot be folded or no stock checkpoint can
            hold it; another width, a layer out of range, a strength or a bias that is not
            finite. Nothing is changed then.
    """
    if not isinstance(vectors, SteeringVectors):
        raise ValueError(f"vectors must be SteeringVectors, came {type(vectors).__name__}")
    strength = finite_number("strength", strength)
    model = unwrapped(model)
    if steerings_of(model):
        raise ValueError("model is steered at the moment; use Steering.fold, or detach it first")
    biases = {
        layer: _new_bias(
            last_linear(model, layer, decoder_layers), strength * vectors.displacement(layer), layer
        )
        for layer in vectors.layers
    }
    reason = why_not_permanent(model, decoder_layers)
    if reason is not None:
        raise ValueError(f"model cannot be written as a steered checkpoint: {reason}")
    found = find_decoder(model, decoder_layers)
    family = family_of(found.layers[0])
    if family in CONVERTED:
        model = converted(model)
    elif family in OPTIONS:
        _enable_biases(model, found, family)
    for layer, bias in biases.items():
        last_linear(model, layer, decoder_layers).bias.copy_(bias)
    return model


def _new_bias(linear: Any, displacement: Tensor, layer: int) -> Tensor:
    width = linear.weight.shape[0] if linear.bias is None else linear.bias.shape[0]
    if displacement.shape != (width,):
        raise ValueError(
            f"vectors have width {displacement.shape[0]}, the model's hidden size is {width}; they "
            "were fitted for another model"
        )
    original = None if linear.bias is None else linear.bias.cpu()
    total = rounded_sum(original, displacement.cpu(), linear.weight.dtype)
    if not bool(total.isfinite().all()):
        raise ValueError(
            f"strength * scale * vector at layer {layer}: the bias would not be finite in "
            f"{linear.weight.dtype}; lower the strength, or use a wider type"
        )
    return total


def _needing_bias(found: DecoderLayers, family: str) -> list[Any]:
    paths = OPTIONS[family].linears if family in OPTIONS else ()
    linears = (walk(layer, path) for layer in found.layers for path in paths)
    return [linear for linear in linears if linear.bias is None]


def _enable_biases(model: Any, found: DecoderLayers, family: str) -> None:
    for linear in _needing_bias(found, family):
        weight = linear.weight
        zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        linear.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    setattr(model.config, OPTIONS[family].option, True)
    if family == "mamba":  # its kernels ask the mixer, not the linears
        for layer in found.layers:
            walk(layer, "mixer").use_bias = True
