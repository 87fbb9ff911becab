"""Probabilities of choices and losses, against what plain forward passes give."""

import pytest
import torch

import expertsteer as es
from expertsteer.models.scoring import choice_probabilities, mean_loss
from helpers.families import build
from helpers.likelihood import continued, log_probability
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

PROMPTS = [sentence(length, seed=length) for length in (1, 5, 3, 9)]
CHOICES = [" w4", " w7 w8", " w7 w9 w2"]


@pytest.fixture(scope="module")
def model():
    return build("llama").eval()


def test_choices_get_the_softmax_of_their_summed_log_probabilities(model):
    tokenizer = tiny_tokenizer()
    measured = choice_probabilities(model, tokenizer, PROMPTS, CHOICES)
    for prompt, row in zip(PROMPTS, measured):
        told = [log_probability(model, *continued(tokenizer, prompt, c)) for c in CHOICES]
        expected = torch.tensor(told, dtype=torch.float64).softmax(dim=0)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_neither_batches_nor_the_tokenizers_padding_change_anything(
    model, batch_size, padding_side
):
    plain = choice_probabilities(model, tiny_tokenizer(), PROMPTS, CHOICES)
    tokenizer = tiny_tokenizer(padding_side)
    measured = choice_probabilities(model, tokenizer, PROMPTS, CHOICES, batch_size)
    torch.testing.assert_close(measured, plain, atol=1e-6, rtol=1e-5)
    losses = mean_loss(model, tokenizer, PROMPTS, batch_size)
    torch.testing.assert_close(
        losses, mean_loss(model, tiny_tokenizer(), PROMPTS), atol=1e-6, rtol=1e-5
    )


def test_each_prompt_may_have_its_own_choices(model):
    tokenizer, own = tiny_tokenizer(), [[" w1", f" w{i + 2}"] for i in range(len(PROMPTS))]
    together = choice_probabilities(model, tokenizer, PROMPTS, own)
    single = [choice_probabilities(model, tokenizer, [p], c) for p, c in zip(PROMPTS, own)]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_the_loss_is_transformers_own(model):
    tokenizer = tiny_tokenizer()
    measured = mean_loss(model, tokenizer, PROMPTS)
    for text, loss in zip(PROMPTS, measured):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            assert loss.item() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_a_context_is_read_and_not_scored(model, bos):
    tokenizer, context = tiny_tokenizer(bos=bos), "w9 w8 w7 "
    measured = mean_loss(model, tokenizer, PROMPTS[1:], context=context)
    for text, loss in zip(PROMPTS[1:], measured):
        ids = tokenizer(context + text)["input_ids"]
        count = len(tokenizer(text)["input_ids"]) - 1
        expected = -log_probability(model, ids, len(ids) - count) / count
        assert loss.item() == pytest.approx(expected, abs=1e-5)
    if bos:  # then a text may be a single word
        with pytest.raises(ValueError, match="merges with a text"):
            mean_loss(model, tokenizer, ["w4"], context="w1")


def test_a_steered_model_is_measured_as_steered(model):
    """Batches with padding agree with single texts under steering too."""
    vectors = es.SteeringVectors({1: torch.randn(32)})
    tokenizer = tiny_tokenizer()
    plain = choice_probabilities(model, tokenizer, PROMPTS, CHOICES)
    with es.attach(model, vectors, strength=2.0) as steering:
        steered = choice_probabilities(model, tokenizer, PROMPTS, CHOICES)
        single = [choice_probabilities(model, tokenizer, [p], CHOICES) for p in PROMPTS]
        losses = mean_loss(model, tokenizer, PROMPTS)
        alone = [mean_loss(model, tokenizer, [p]) for p in PROMPTS]
        steering.set(strength=0.0)
        assert torch.equal(choice_probabilities(model, tokenizer, PROMPTS, CHOICES), plain)
    torch.testing.assert_close(steered, torch.cat(single), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(losses, torch.cat(alone), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(steered, plain, atol=1e-3)


def test_the_models_training_mode_is_left_as_it_was(model):
    model.train()
    mean_loss(model, tiny_tokenizer(), PROMPTS)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([], [" w1", " w2"]), "prompts"),
        (("w1", [" w1", " w2"]), "prompts"),
        ((["w1"], []), "choices"),
        ((["w1"], " w2"), "choices"),
        ((["w1"], [" w2"]), "two or more"),
        ((["w1"], [" w2", " w2"]), "different"),
        ((["w1"], [" w2", ""]), "non-empty"),
        ((["w1", "w2"], [[" w2", " w3"]]), "each of the 2"),
        ((["w1", "w2"], [[" w2", " w3"], [" w2", " w3", " w4"]]), "same length"),
        ((["w1"], [" w2", " w3"], 0), "batch_size"),
    ],
)
def test_bad_prompts_and_choices_are_named(model, arguments, named):
    with pytest.raises(ValueError, match=named):
        choice_probabilities(model, tiny_tokenizer(), *arguments)


def test_texts_too_short_to_score_are_refused(model):
    bare = tiny_tokenizer(bos=False)
    with pytest.raises(ValueError, match="beginning-of-sequence"):
        choice_probabilities(model, bare, [""], ["w1", "w2"])
    with pytest.raises(ValueError, match="at least 2"):
        mean_loss(model, bare, ["w1"])
    with pytest.raises(ValueError, match="texts"):
        mean_loss(model, bare, [])
