"""An expert with a cache has, at every step, the states of one that reads each text anew."""

import pytest
import torch
import transformers

from expertsteer.guidance.knowing import states_of_texts
from expertsteer.guidance.reading_along import ReadingAlong
from helpers.families import build, build_or_skip
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers
A, B, C = (sentence(n, seed=n) for n in (4, 7, 2))
LAYERS = [2, 0]

STEPS = {
    "one token a step": [[A, B, C], [f"{A} w1", f"{B} w2", f"{C} w3"]]
    + [[f"{A} w1 w{i}", f"{B} w2 w{i}", f"{C} w3 w{i}"] for i in (4, 5)],
    "steps of their own": [[A, B], [f"{A} w1 w2 w3", B], [f"{A} w1 w2 w3", f"{B} w9"]],
    "an end that changes": [[A, B], [f"{A} w1 w2", f"{B} w5"], [f"{A} w1 w7", f"{B} w5 w6"]],
    "texts that change places": [[A, B, C], [f"{B} w1", f"{A} w1", f"{A} w2"]],
    "fewer and more of them": [[A, B, C], [f"{C} w1"], [f"{C} w1 w2", f"{C} w1 w3"], [A, B, C]],
    "the same again": [[A, B], [A, B]],
    "others altogether": [[A], [B, C], [A, C, B, A]],
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text", "mistral"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=list(STEPS))
def test_every_state_is_that_of_a_text_read_anew(family, steps):
    if family == "gemma3_text" and transformers.__version__.startswith("4."):
        pytest.skip("its cache has a fixed length before transformers 5, which is refused")
    model, tokenizer = build_or_skip(family).eval(), tiny_tokenizer()
    reading = ReadingAlong(model, tokenizer, LAYERS)
    for texts in steps:
        expected = states_of_texts(model, tokenizer, texts, sorted(LAYERS)).flip(0)
        torch.testing.assert_close(reading.states(texts), expected, atol=2e-5, rtol=1e-4)


def test_only_what_is_new_is_read():
    model, tokenizer = build("llama").eval(), tiny_tokenizer()
    reading, long = ReadingAlong(model, tokenizer, [1]), sentence(30)
    reading.states([long, long])
    read = reading.read
    for i in range(5):
        reading.states([f"{long} {sentence(i + 1)}", f"{long} {sentence(i + 1, 3)}"])
    # Each step reads the last token once more, for texts that stay as they are.
    assert reading.read - read <= 2 * 2 * 5


def test_a_cache_of_holes_is_given_up_and_the_model_left_as_it_was():
    model, tokenizer = build("llama").eval(), tiny_tokenizer()
    reading = ReadingAlong(model, tokenizer, [1])
    for seed in range(8):  # nothing of one text is in the next
        reading.states([sentence(12, seed=seed)])
    assert reading._mask.shape[1] <= 2 * 13 + 1
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layers", [[], [7], [-1]])
def test_a_layer_that_is_not_there_is_refused(layers):
    with pytest.raises(ValueError, match="layers must be"):
        ReadingAlong(build("llama"), tiny_tokenizer(), layers)


@pytest.mark.parametrize("family", ["mamba", "bloom"])
def test_a_model_that_cannot_mask_what_it_has_read_is_refused(family):
    with pytest.raises(ValueError, match="cannot read along"):
        ReadingAlong(build_or_skip(family), tiny_tokenizer(), [0]).states([A])
