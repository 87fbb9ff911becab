"""Tiny random-weight models of every family that is tested, built offline.

``build("llama")`` gives a causal language model; a family that the installed transformers lacks
raises `FamilyUnavailable`, which tests turn into a skip with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

LAYERS, WIDTH, VOCABULARY = 3, 32, 64


class FamilyUnavailable(Exception):
    """The installed transformers cannot build this family."""


@dataclass(frozen=True)
class Family:
    """How to build one family, and what is peculiar about it.

    Attributes:
        name: as in `FAMILIES`.
        prefix: of its configuration class in transformers.
        layers_path: where the list of decoder layers is.
        options: configuration, beside the common sizes.
        sizes: what the family calls width and depth.
        first_entry: where the first layer's output stands in ``output_hidden_states``; ``None``
            where those entries are not the outputs of the blocks.
    """

    name: str
    prefix: str
    layers_path: str
    options: dict = field(default_factory=dict)
    sizes: tuple[str, str] = ("hidden_size", "num_hidden_layers")
    first_entry: int | None = 1


ATTENTION = {
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = ATTENTION | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
GPT = {"n_head": 4, "n_positions": 64}
GPT_SIZES = ("n_embd", "n_layer")

FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "Llama", "model.layers", GROUPED),
        Family("qwen2", "Qwen2", "model.layers", GROUPED),
        Family("qwen3", "Qwen3", "model.layers", GROUPED | {"head_dim": 8}),
        Family("mistral", "Mistral", "model.layers", GROUPED | {"sliding_window": 8}),
        # As many experts as layers: the lists of experts must not pass for the decoder.
        Family(
            "mixtral",
            "Mixtral",
            "model.layers",
            GROUPED | {"num_local_experts": LAYERS, "num_experts_per_tok": 2},
        ),
        Family("gemma2", "Gemma2", "model.layers", GEMMA),
        Family("gemma3_text", "Gemma3Text", "model.layers", GEMMA),
        Family("phi3", "Phi3", "model.layers", GROUPED | {"pad_token_id": 0}),
        Family("gpt2", "GPT2", "transformer.h", GPT, GPT_SIZES),
        Family("gpt_neox", "GPTNeoX", "gpt_neox.layers", ATTENTION),
        Family(
            "opt",
            "OPT",
            "model.decoder.layers",
            {
                "num_attention_heads": 4,
                "ffn_dim": 48,
                "word_embed_proj_dim": WIDTH,
                "max_position_embeddings": 64,
            },
        ),
        Family("falcon", "Falcon", "transformer.h", {"num_attention_heads": 4}),
        Family("bloom", "Bloom", "transformer.h", {"n_head": 4}, ("hidden_size", "n_layer")),
        # No entry for the embedding.
        Family("mamba", "Mamba", "backbone.layers", {"state_size": 4}, first_entry=0),
        Family(
            "rwkv",
            "Rwkv",
            "rwkv.blocks",
            # Two blocks between halvings, so that evaluation mode does rescale.
            {"attention_hidden_size": WIDTH, "intermediate_size": 48, "rescale_every": 2},
            first_entry=None,
        ),
    )
}


def config_of(family: Family):
    """The family's configuration class in the installed transformers.

    Raises:
        FamilyUnavailable: it has none.
    """
    import transformers

    name = f"{family.prefix}Config"
    if not hasattr(transformers, name):
        raise FamilyUnavailable(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def weights_type(dtype) -> dict:
    """How ``from_pretrained`` of the installed transformers is told the type of the weights."""
    import transformers

    old = int(transformers.__version__.partition(".")[0]) < 5
    return {"torch_dtype" if old else "dtype": dtype}


def build(
    name: str, *, layers: int = LAYERS, width: int = WIDTH, dtype=torch.float32, seed: int = 0
):
    """A causal language model in evaluation mode, the same for the same arguments.

    Weights are larger than a fresh model's, so that layers differ by more than rounding.

    Raises:
        FamilyUnavailable: with the reason.
    """
    import transformers

    family = FAMILIES[name]
    config_class = config_of(family)
    sizes = dict(zip(family.sizes, (width, layers)))
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    options = {"vocab_size": VOCABULARY} | special | sizes | family.options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config_class(**options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def build_or_skip(name: str, **options):
    """`build`, or skip the test with the reason why this family cannot be built."""
    try:
        return build(name, **options)
    except FamilyUnavailable as reason:
        pytest.skip(f"{name}: {reason}")
