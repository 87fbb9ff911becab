"""Every family: the decoder is found, and a captured state is the output of its block."""

from __future__ import annotations

import pytest
import torch

from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.models.decoder import find_decoder
from expertsteer.models.description import hidden_size
from expertsteer.states.in_memory import capture
from helpers.families import FAMILIES, LAYERS, VOCABULARY, WIDTH, build_or_skip
from helpers.passes import outputs_of
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

LENGTHS = (3, 9, 1, 6, 12)
CONTRAST = ContrastSet.from_texts(
    [sentence(length, seed) for seed, length in enumerate(LENGTHS)], [0, 1, 0, 1, 1]
)

every_family = pytest.mark.parametrize("family", FAMILIES)
# Relative to the norm of a state: rounding accumulates over a few operations per layer.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def block_outputs(model, layers_path, text):
    """Every layer's output for one unpadded text, ``[L, T, D]``, through hooks of its own."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad(), outputs_of(model.get_submodule(layers_path)) as seen:
        model(input_ids=ids, use_cache=False)
    return torch.stack(seen)[:, 0]


def assert_close(came, expected, dtype):
    error = (came.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    assert error.max() < TOLERANCE[dtype], f"{error.max():.1e}"


@pytest.fixture
def family_model(family):
    return build_or_skip(family)


@every_family
def test_the_decoder_is_found(family, family_model):
    found = find_decoder(family_model)
    path = FAMILIES[family].layers_path
    assert found.layers_path == path and found.decoder_path == path.rpartition(".")[0]
    assert found.decoder is family_model.get_submodule(found.decoder_path)
    assert found.layers == tuple(family_model.get_submodule(path))
    assert find_decoder(family_model, path) == found
    assert len(found) == LAYERS and hidden_size(family_model) == WIDTH


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_batch_gives_the_block_outputs_of_each_text_alone(family, family_model, dtype):
    model = family_model.to(dtype)
    kept = {
        "last": lambda outputs: outputs[:, -1],
        "mean": lambda outputs: outputs.float().mean(dim=1),
        0: lambda outputs: outputs[:, 0],
        -2: lambda outputs: outputs[:, -2],
    }
    path = FAMILIES[family].layers_path
    alone = [block_outputs(model, path, text) for text in CONTRAST.texts]
    for position, of in kept.items():
        came = capture(model, tiny_tokenizer(), CONTRAST, position=position, batch_size=3)
        expected = torch.stack([of(outputs) for outputs in alone], dim=1)
        assert came.states.dtype == dtype and came.position == position
        assert_close(came.states, expected, dtype)


def test_a_model_whose_outer_part_makes_the_masks_is_read_as_it_runs():
    """Models of several modalities hand their decoder masks that are no longer by tokens."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = FAMILIES["gemma3_text"].options | {"vocab_size": VOCABULARY, "hidden_size": WIDTH}
    text |= {"num_hidden_layers": LAYERS, "layer_types": None, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0, **tokens
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    texts = [sentence(length, seed) for seed, length in enumerate(LENGTHS)]
    texts = [text.replace("w5", "w3") for text in texts]  # w56 to w58 stand for images
    contrast = ContrastSet.from_texts(texts, [0, 1, 0, 1, 1])
    path = find_decoder(model).layers_path
    alone = [block_outputs(model, path, text)[:, -1] for text in contrast.texts]
    came = capture(model, tiny_tokenizer(), contrast, batch_size=3)
    assert_close(came.states, torch.stack(alone, dim=1), torch.float32)


@every_family
def test_padding_side_and_batch_size_make_no_difference(family, family_model):
    right = capture(family_model, tiny_tokenizer("right"), CONTRAST)
    left = capture(family_model, tiny_tokenizer("left"), CONTRAST)
    single = capture(family_model, tiny_tokenizer("left"), CONTRAST, batch_size=1)
    assert torch.equal(left.states, right.states)
    assert_close(single.states, right.states, torch.float32)


@every_family
def test_states_are_those_before_the_final_norm(family, family_model):
    first = FAMILIES[family].first_entry
    if first is None:
        pytest.skip(f"{family}: output_hidden_states shows rescaled states, not block outputs")
    text = CONTRAST.texts[4]
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        entries = family_model(input_ids=ids, output_hidden_states=True).hidden_states
    states = capture(family_model, tiny_tokenizer(), CONTRAST).states[:, 4]
    outputs = torch.stack([entry[0, -1] for entry in entries[first : first + LAYERS - 1]])
    assert_close(states[:-1], outputs, torch.float32)
    assert (states[-1] - entries[-1][0, -1]).norm() > 0.1 * states[-1].norm()
