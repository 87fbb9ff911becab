"""Capture: what is kept, in which order, at what cost. See test_capture_refused for what is not."""

from __future__ import annotations

import weakref

import pytest
import torch

from expertsteer.contrast.contrast_set import ContrastSet, Example
from expertsteer.states.in_memory import capture
from helpers.contrasts import CONTRAST, TEXTS
from helpers.families import LAYERS, WIDTH, build
from helpers.passes import hidden_of
from helpers.tiny_tokenizer import CHAT_TEMPLATE, sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# What is kept


def test_states_labels_and_keys_are_in_the_order_of_the_contrast_set(model):
    whole = capture(model, tiny_tokenizer(), CONTRAST, batch_size=2)
    assert whole.states.shape == (LAYERS, len(CONTRAST), WIDTH)
    assert tuple(whole.labels.tolist()) == CONTRAST.labels
    assert tuple(whole.keys.tolist()) == CONTRAST.keys
    assert whole.model["architecture"] == "LlamaForCausalLM"
    rows = [6, 0, 3]
    part = capture(model, tiny_tokenizer(), CONTRAST.take(rows))
    torch.testing.assert_close(part.states, whole.states[:, rows])
    assert torch.equal(part.keys, whole.keys[rows])


def test_chosen_layers_are_rows_of_the_whole(model):
    whole = capture(model, tiny_tokenizer(), CONTRAST)
    some = capture(model, tiny_tokenizer(), CONTRAST, layers=[2, 0])
    assert some.layers == (0, 2) and torch.equal(some.states, whole.states[[0, 2]])
    assert capture(model, tiny_tokenizer(), CONTRAST, layers=1).layers == (1,)


def test_the_type_is_the_models_or_the_one_asked_for():
    model = build("llama", dtype=torch.bfloat16)
    own = capture(model, tiny_tokenizer(), CONTRAST).states
    assert own.dtype == capture(model, tiny_tokenizer(), CONTRAST, dtype="model").states.dtype
    assert own.dtype == torch.bfloat16
    wide = capture(model, tiny_tokenizer(), CONTRAST, dtype=torch.float32).states
    assert wide.dtype == torch.float32 and torch.equal(wide.bfloat16(), own)


def test_the_mean_is_summed_in_single_precision():
    model = build("llama", dtype=torch.bfloat16)
    means = capture(model, tiny_tokenizer(), CONTRAST, position="mean", dtype=torch.float32).states
    lengths = [len(text.split()) + 1 for text in TEXTS]
    expected = torch.zeros_like(means)
    for token in range(max(lengths)):
        rows = [i for i, length in enumerate(lengths) if token < length]
        part = capture(model, tiny_tokenizer(), CONTRAST.take(rows), position=token)
        expected[:, rows] += part.states.float()
    expected /= torch.tensor(lengths)[:, None]
    # Batches of other shapes round differently in bfloat16; a bfloat16 sum would be off by more.
    error = (means - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 2**-8
    assert not torch.equal(means, means.bfloat16().float())


@pytest.mark.parametrize("position", ["last", "mean"])
def test_no_layers_output_outlives_the_next_layer(model, position):
    alive, most = [], []

    def before(module, args, kwargs):
        # The input of a layer is the output of the one before it; everything older is gone.
        most.append(sum(ref() is not None for ref in alive))

    def after(module, args, output):
        alive.append(weakref.ref(hidden_of(output)))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after)
    came = capture(model, tiny_tokenizer(), CONTRAST, position=position, batch_size=2)
    assert len(most) == LAYERS * 4 and max(most) == 1
    assert came.states.untyped_storage().nbytes() == LAYERS * len(CONTRAST) * WIDTH * 4


def test_no_vocabulary_no_cache_and_no_gradient_is_computed(model):
    caching = []

    def before(module, args, kwargs):
        caching.append(kwargs["use_cache"])

    model.model.register_forward_pre_hook(before, with_kwargs=True)
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    assert not capture(model, tiny_tokenizer(), CONTRAST).states.requires_grad
    assert caching == [False]


def test_long_texts_come_first_and_share_batches(model):
    shapes = []
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda m, a, out: shapes.append(hidden_of(out).shape[:2]))
    capture(model, tiny_tokenizer(), CONTRAST, batch_size=3)
    assert shapes == [(3, 13), (3, 7), (1, 2)]


# The model comes back as it was


def test_the_model_is_evaluated_and_comes_back_as_it_was():
    model = build("gpt2").train()  # dropout would make states random
    model.transformer.h[1].eval()
    flags = [module.training for module in model.modules()]
    first, second = (capture(model, tiny_tokenizer(), CONTRAST).states for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in model.modules()] == flags
    assert hooks(model) == 0


def test_the_model_comes_back_as_it_was_after_an_error(model):
    def fail(*_):
        raise RuntimeError("on the way")

    model.train()
    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        capture(model, tiny_tokenizer(), CONTRAST)
    handle.remove()
    assert hooks(model) == 0 and all(module.training for module in model.modules())


# Chat messages


def test_messages_go_through_the_chat_template(model):
    question = ({"role": "user", "content": "w1 w2"},)
    answered = (*question, {"role": "assistant", "content": "w3"})
    came = capture(
        model,
        tiny_tokenizer(chat=True),
        ContrastSet((Example(question, 0), Example(answered, 1), Example("w1 w2", 0))),
    )
    # The template writes its own special tokens, so that none may be added once more.
    rendered = ["<s> w1 w2 </s> <s>", "<s> w1 w2 </s> <s> w3 </s>", "<s> w1 w2"]
    expected = capture(
        model, tiny_tokenizer(bos=False), ContrastSet.from_texts(rendered, [0, 1, 0])
    )
    torch.testing.assert_close(came.states, expected.states)


def test_messages_need_a_template_that_takes_them(model):
    contrast = ContrastSet((Example("w1", 0), Example(({"role": "system", "content": "w1"},), 1)))
    with pytest.raises(ValueError, match="example 1 holds chat messages.* no chat template"):
        capture(model, tiny_tokenizer(), contrast)
    with pytest.raises(ValueError, match="refuses example 1: no system role"):
        capture(model, tiny_tokenizer(chat=True), contrast)
    assert "no system role" in CHAT_TEMPLATE


# Lengths


def test_a_text_longer_than_the_model_allows_is_refused(model):
    long = ContrastSet.from_texts(["w1", sentence(64)], [0, 1])
    with pytest.raises(ValueError, match="example 1 has 65 tokens.* allows 64 .*max_length=64"):
        capture(model, tiny_tokenizer(), long)
    with pytest.raises(ValueError, match="example 1 has 65 tokens"), pytest.warns(UserWarning):
        capture(
            model, tiny_tokenizer(), ContrastSet((*long, Example(sentence(80), 1))), max_length=65
        )


def test_max_length_cuts_with_a_warning(model):
    short = [" ".join(text.split()[:4]) for text in TEXTS]
    expected = capture(model, tiny_tokenizer(), ContrastSet.from_texts(short, CONTRAST.labels))
    with pytest.warns(UserWarning, match="max_length=5 cut 4 of 7 examples") as caught:
        came = capture(model, tiny_tokenizer(), CONTRAST, max_length=5)
    assert caught[0].filename == __file__
    torch.testing.assert_close(came.states, expected.states)
    capture(model, tiny_tokenizer(), CONTRAST, max_length=13)  # nothing cut, nothing said


def test_an_example_without_tokens_is_named(model):
    contrast = ContrastSet((Example("w1", 0), Example(" ", 1)))
    with pytest.raises(ValueError, match="example 1 has no tokens"):
        capture(model, tiny_tokenizer(bos=False), contrast)


def test_a_position_outside_an_example_names_the_example(model):
    for position in (3, -4):
        with pytest.raises(ValueError, match=f"position {position} .*example 2, which has 2 tok"):
            capture(model, tiny_tokenizer(), CONTRAST, position=position)
