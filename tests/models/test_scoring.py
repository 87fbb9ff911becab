"""Probabilities of choices and losses, against what plain forward passes give."""

import math
from contextlib import contextmanager

import pytest
import torch

import expertsteer as es
from expertsteer.models.batches import padded
from expertsteer.models.forward import heads_where_asked, logits
from expertsteer.models.scoring import choice_probabilities, log_probabilities, mean_loss
from helpers.families import build, build_or_skip
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


def scored_sequences():
    """Token ids of several lengths, scored from early, middle and last places on."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 60, (n,), generator=generator).tolist() for n in (4, 9, 17, 18, 20)]
    return [(ids, start) for ids in rows for start in (len(ids) // 2, len(ids) - 1)]


@contextmanager
def heads_of(model):
    """The shape of everything that comes out of the model's head meanwhile."""
    shapes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))
    yield shapes
    handle.remove()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "opt", "mamba", "rwkv"])
def test_the_head_runs_where_it_is_read(family, monkeypatch):
    model, sequences = build_or_skip(family), scored_sequences()
    with heads_of(model) as shapes:
        came = log_probabilities(model, sequences, 4)
    monkeypatch.setattr("expertsteer.models.forward._own", lambda model: False)
    with heads_of(model) as whole:
        torch.testing.assert_close(came, log_probabilities(model, sequences, 4), rtol=1e-5, atol=0)
    assert [shape[0] for shape in shapes] == [shape[0] for shape in whole]
    monkeypatch.undo()
    if family == "llama" or heads_where_asked(model):  # some do not in older releases
        assert all(a[1] < b[1] for a, b in zip(shapes, whole))


def test_models_that_might_misread_places_are_run_whole(model):
    whole = logits(model, *padded([[5, 6, 7, 8]]))
    asked = [heads_where_asked(model)]
    with es.attach(model, es.SteeringVectors({1: torch.randn(32)}), mode="slot"):
        asked.append(heads_where_asked(model))
    assert asked == [True, True]
    seen = []
    handle = model.register_forward_hook(lambda _m, _a, out: seen.append(out.logits.shape[1]))
    assert not heads_where_asked(model)  # who reads what comes out finds a row per token
    came = logits(model, *padded([[5, 6, 7, 8]]), 2)
    handle.remove()
    torch.testing.assert_close(came, whole[:, 2:])
    assert seen == [4]

    class Ignoring(type(model)):
        def forward(self, input_ids=None, attention_mask=None, logits_to_keep=0, **kwargs):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    class Without(type(model)):
        def forward(self, input_ids, attention_mask, **kwargs):
            assert not kwargs.get("logits_to_keep")
            return super().forward(input_ids, attention_mask)

    Ignoring.__module__ = Without.__module__ = "transformers.models.made_up"
    for kind, told in ((Ignoring, True), (Without, False)):
        other = kind(model.config)
        other.load_state_dict(model.state_dict())
        assert heads_where_asked(other.eval()) == told
        torch.testing.assert_close(logits(other, *padded([[5, 6, 7, 8]]), 2), whole[:, 2:])


@pytest.mark.parametrize("rows", [0.5, 1, 3])
def test_logits_are_bounded_whatever_the_batch_size(model, monkeypatch, rows):
    sequences, bound = scored_sequences(), int(rows * 19 * 64 * 4)
    plain = log_probabilities(model, sequences, 64)
    monkeypatch.setattr("expertsteer.models.forward.LOGIT_BYTES", bound)
    with heads_of(model) as shapes:
        came = log_probabilities(model, sequences, 64)
    torch.testing.assert_close(came, plain, rtol=1e-5, atol=0)
    assert all(math.prod(shape) * 4 <= bound or shape[0] == 1 for shape in shapes)
    assert sum(shape[0] for shape in shapes) == len(sequences)
