"""More families than the capture test has, and what the tests of folding compare."""

from functools import reduce

import pytest
import torch

import expertsteer as es
from expertsteer.folding.fold import Fold
from expertsteer.models.decoder import find_decoder
from expertsteer.models.description import hidden_size
from helpers.families import (
    ATTENTION,
    FAMILIES,
    GPT,
    GPT_SIZES,
    GROUPED,
    Family,
    FamilyUnavailable,
    build_or_skip,
    config_of,
)
from helpers.steered_models import logits, with_plain_hooks

HEADS = GROUPED | {"head_dim": 8}
NEO = {"num_heads": 4, "max_position_embeddings": 64, "attention_types": [[["global"], 3]]}

MORE = {
    family.name: family
    for family in (
        Family("arcee", "Arcee", "model.layers", GROUPED),
        Family("codegen", "CodeGen", "transformer.h", GPT | {"rotary_dim": 4}, GPT_SIZES),
        Family("cohere", "Cohere", "model.layers", GROUPED),
        Family("gemma", "Gemma", "model.layers", HEADS),
        Family("glm", "Glm", "model.layers", HEADS),
        Family("gpt_bigcode", "GPTBigCode", "transformer.h", GPT, GPT_SIZES),
        Family("gpt_neo", "GPTNeo", "transformer.h", NEO, ("hidden_size", "num_layers")),
        Family("gptj", "GPTJ", "transformer.h", GPT | {"rotary_dim": 4}, GPT_SIZES),
        Family("helium", "Helium", "model.layers", HEADS),
        Family("hunyuan_v1_dense", "HunYuanDenseV1", "model.layers", HEADS),
        Family("hy_v3", "HYV3", "model.layers", HEADS | {"mlp_layer_types": ["dense"] * 3}),
        Family("ministral", "Ministral", "model.layers", HEADS),
        Family(
            "mpt",
            "Mpt",
            "transformer.blocks",
            {"n_heads": 4, "max_seq_len": 64},
            ("d_model", "n_layers"),
        ),
        Family("nemotron", "Nemotron", "model.layers", HEADS),
        Family("olmo", "Olmo", "model.layers", GROUPED),
        Family("phi", "Phi", "model.layers", ATTENTION),
        Family("seed_oss", "SeedOss", "model.layers", HEADS),
        Family("smollm3", "SmolLM3", "model.layers", GROUPED),
        Family("stablelm", "StableLm", "model.layers", GROUPED),
        Family("starcoder2", "Starcoder2", "model.layers", GROUPED),
    )
}
EVERY = FAMILIES | MORE


# What a configuration may say that the checkpoint must keep.
VARIANTS = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with attention biases": ("llama", {"attention_bias": True, "head_dim": 16}),
    "mistral without a window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral with a window of the whole length": ("mistral", {"sliding_window": 64}),
    "mistral with another rope": (
        "mistral",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2 with a window in its last layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3 with attention biases": ("qwen3", {"attention_bias": True, "head_dim": 16}),
    "phi3 with a window": ("phi3", {"sliding_window": 4}),
    "opt without biases": ("opt", {"enable_bias": False}),
    "falcon, new architecture": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
    "falcon, sequential": ("falcon", {"parallel_attn": False, "alibi": True}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "starcoder2 without biases": ("starcoder2", {"use_bias": False}),
}
CONVERTED_TO = {
    "mistral": "smollm3",
    "mistral without a window": "llama",
    "mistral with a window of the whole length": "llama",
    "mistral with another rope": "smollm3",
    "qwen2": "llama",
    "qwen2 tied": "llama",
    "qwen2 with a window in its last layers": "smollm3",
    "qwen3": "hy_v3",
    "qwen3 with attention biases": "hy_v3",
    "phi3": "llama",
    "phi3 with a window": "smollm3",
}


def build_case(monkeypatch, case, **changes):
    name, options = VARIANTS.get(case, (case, {}))
    base = EVERY[name]
    family = Family(
        base.name, base.prefix, base.layers_path, base.options | options | changes, base.sizes
    )
    monkeypatch.setitem(FAMILIES, name, family)
    try:
        config_of(EVERY[CONVERTED_TO.get(case, name)])
    except FamilyUnavailable as reason:
        pytest.skip(f"{case} is written as another family: {reason}")
    return build_or_skip(name)


def vectors_for(model, layers=(0, 2), strength=1.0, seed=11):
    """Vectors large enough that a misplaced one changes every logit."""
    generator = torch.Generator().manual_seed(seed)
    width = hidden_size(model)
    return es.SteeringVectors(
        {i: strength * torch.randn(width, generator=generator) for i in layers}
    )


def hooked_logits(model, vectors, ids, mask=None, **kwargs):
    """The definition: vectors added by hooks, at all positions or where the mask is 1."""
    where = torch.ones(ids.shape) if mask is None else mask.float()
    dtype = next(model.parameters()).dtype
    hooks = with_plain_hooks(model, vectors, 1.0, where.to(dtype))
    try:
        return logits(model, ids, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()


def relative_error(result, expected):
    return float((result - expected).abs().max() / expected.abs().max())


def block(model, layer):
    return find_decoder(model).layers[layer]


def at(model, layer, path):
    """A module inside a decoder layer."""
    return reduce(getattr, path.split("."), block(model, layer))


def fold_all(model, vectors):
    folds = [Fold(model, layer).install() for layer in vectors.layers]
    for fold in folds:
        fold.write(vectors.displacement(fold.layer))
    return folds


def remove(folds):
    for fold in folds:
        fold.remove()
