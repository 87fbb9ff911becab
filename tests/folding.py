"""More families than the capture test has, and what the tests of folding compare."""

from functools import reduce

import torch

import expertsteer as es
from expertsteer.folding.fold import Fold
from expertsteer.models.decoder import find_decoder
from expertsteer.models.description import hidden_size
from families import FAMILIES, Family
from steering import logits, with_plain_hooks

ATTENTION = {
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = ATTENTION | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
GPT = {"n_head": 4, "n_positions": 64}
GPT_SIZES = ("n_embd", "n_layer")
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
