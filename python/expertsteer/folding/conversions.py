"""Write a model whose own configuration has no bias in the MLP as a stock family that has one.

Weights keep their names and values, Phi-3's joint projections are cut into their parts. A family
is here only where the other one computes the same function; what it cannot express is refused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range",
    "rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "attention_dropout",
)  # fmt: skip
_LLAMA = "a Llama checkpoint, or SmolLM3 where a sliding window is in use"

# What each family is written as.
CONVERTED: dict[str, str] = {
    "mistral": _LLAMA,
    "phi3": f"{_LLAMA}; not with longrope or a partial rotary embedding",
    "qwen2": _LLAMA,
    "qwen3": "a HYV3 checkpoint with dense layers only; not with a sliding window",
}


def why_not_converted(model: nn.Module) -> str | None:
    """What of a model in `CONVERTED` the other family cannot express, or ``None``."""
    config = model.config
    rope = _rope(config)
    if config.model_type == "phi3":
        if rope["rope_type"] != "default":
            return f"the rotary embedding {rope['rope_type']!r} switches by length in Phi-3 alone"
        if rope["partial_rotary_factor"] != 1.0:
            return "Llama rotates all entries of a head, this model a part of them"
    if config.model_type == "qwen3":
        if _window(config) is not None:
            return "no stock family has norms of queries and keys, a sliding window and the bias"
        if config.num_hidden_layers > 80:
            return "HYV3 skips the weights of layer 80 when loading"
    target = _target_name(config)
    if _stock_class(f"{target}ForCausalLM") is None:
        return f"the installed transformers has no {target} to write it as"
    devices = {str(tensor.device) for tensor in model.state_dict().values()}
    if len(devices) > 1 or "meta" in devices:
        return f"its weights are on {sorted(devices)}; move the model to one device"
    return None


def converted(model: nn.Module) -> nn.Module:
    """The same function as a stock family with biases in every MLP, all of them zero.

    The weights are those of ``model``, not copies, except where a joint projection is cut.
    """
    config = _config(model)
    # Nothing is allocated or drawn for weights that are assigned in a moment.
    with torch.device("meta"):
        new = _stock_class(f"{_target_name(model.config)}ForCausalLM")(config)
    state = _state(model)
    device = next(iter(state.values())).device
    for name, blank in new.named_parameters():
        if name not in state and name.endswith(".bias"):
            owner = state[name.removesuffix("bias") + "weight"]
            state[name] = torch.zeros(blank.shape, dtype=owner.dtype, device=device)
    new.load_state_dict(state, assign=True)
    new.tie_weights()
    # The only buffers that are computed and not saved.
    new.model.rotary_emb = type(new.model.rotary_emb)(config=config).to(device)
    new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


def _config(model: nn.Module) -> Any:
    old = model.config
    settings = {name: getattr(old, name) for name in _COPIED}
    settings["head_dim"] = _head_dim(old)
    settings["mlp_bias"] = True
    settings["attention_bias"] = any(
        name.endswith("_proj.bias") and "self_attn" in name for name, _ in model.named_parameters()
    )
    rope = {k: v for k, v in _rope(old).items() if k != "partial_rotary_factor"}
    if hasattr(old, "rope_parameters"):
        settings["rope_parameters"] = rope
    else:  # before transformers 5
        settings |= {
            "rope_theta": old.rope_theta,
            "rope_scaling": getattr(old, "rope_scaling", None),
        }
    target = _target_name(old)
    if target == "SmolLM3":
        settings |= {
            "use_sliding_window": True,
            "sliding_window": _window(old),
            "layer_types": _layer_types(old),
            "no_rope_layers": [1] * old.num_hidden_layers,  # 1: this layer has one
        }
    if target == "HYV3":
        settings["mlp_layer_types"] = ["dense"] * old.num_hidden_layers
    config = _stock_class(f"{target}Config")(**settings)
    config._attn_implementation = old._attn_implementation
    config._name_or_path = old._name_or_path
    return config


def _target_name(config: Any) -> str:
    if config.model_type == "qwen3":
        return "HYV3"
    return "Llama" if _window(config) is None else "SmolLM3"


def _rope(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    partial = getattr(config, "partial_rotary_factor", 1.0)
    return {"rope_type": "default", "partial_rotary_factor": partial} | rope


def _window(config: Any) -> int | None:
    """The sliding window, where a sequence the model allows can be longer than it."""
    window = getattr(config, "sliding_window", None)
    if window is None or window >= config.max_position_embeddings:
        return None
    return window if "sliding_attention" in _layer_types(config) else None


def _layer_types(config: Any) -> list[str]:
    """Mistral and Phi-3 treat all layers alike, the Qwen families have a list or a first layer."""
    depth, kinds = config.num_hidden_layers, getattr(config, "layer_types", None)
    if config.model_type in ("mistral", "phi3"):
        return ["sliding_attention"] * depth
    first = min(depth, config.max_window_layers)
    return list(kinds or ["full_attention"] * first + ["sliding_attention"] * (depth - first))


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    if model.config.model_type != "phi3":
        return state
    config = model.config
    cut: dict[str, Tensor] = {}
    for name, weight in state.items():
        parts = joint_parts(name, config)
        for part, (first, last) in parts.items():
            rows = weight[first:last]
            # One value at every place stands for weights that are still in a file.
            cut[part] = rows if 0 in rows.stride() else rows.clone()
        if not parts:
            cut[name] = weight
    return cut


def joint_parts(name: str, config: Any) -> dict[str, tuple[int, int]]:
    """What a joint projection of Phi-3 is cut into: ``{name: (first row, last row + 1)}``.

    Empty for every other weight, and for other families.
    """
    if config.model_type != "phi3":
        return {}
    stem, joint, last = name.rpartition("qkv_proj.")
    if joint:
        head = _head_dim(config)
        query, key = (head * n for n in (config.num_attention_heads, config.num_key_value_heads))
        sizes = dict(zip("qkv", (query, key, key)))
    else:
        stem, joint, last = name.rpartition("gate_up_proj.")
        sizes = dict.fromkeys(("gate", "up"), config.intermediate_size)
    if not joint:
        return {}
    parts, row = {}, 0
    for part, size in sizes.items():
        parts[f"{stem}{part}_proj.{last}"] = (row, row + size)
        row += size
    return parts


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _stock_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name, None)
