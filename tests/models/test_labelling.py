"""Labels that a model gives: its own log-odds, on a model whose answers are known."""

import pytest
import torch

import expertsteer as es
from helpers.families import build
from helpers.likelihood import continued, log_probability
from helpers.tiny_tokenizer import WORDS, sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

ANSWERS = (" w3", " w4")
TEXTS = [f"{sentence(1 + i % 5, seed=i)} {WORDS[5 + i]}" for i in range(24)]


@pytest.fixture(scope="module")
def knowing():
    """A model whose blocks add nothing: what it answers hangs on the last word alone.

    ``score(word)`` is how far it prefers the first answer to the second behind that word.
    """
    model = build("llama").eval()
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        first, second = (tokenizer.convert_tokens_to_ids(a.strip()) for a in ANSWERS)
        difference = model.lm_head.weight[first] - model.lm_head.weight[second]
        embedded = model.model.norm(model.get_input_embeddings().weight)
        scores = (embedded @ difference).double()
    return model, tokenizer, lambda text: scores[
        tokenizer.convert_tokens_to_ids(text.split()[-1])
    ]  # fmt: skip


def ask(knowing, question="w9 {text}", answers=ANSWERS, texts=TEXTS, **options):
    return es.label_by_expert(*knowing[:2], texts, question, answers, **options)


def test_labels_and_certainty_are_what_the_model_knows(knowing):
    known = torch.stack([knowing[2](text) for text in TEXTS])
    found = ask(knowing, keep=1.0)
    torch.testing.assert_close(found.log_odds, known, atol=1e-5, rtol=1e-4)
    assert found.rows.tolist() == list(range(len(TEXTS)))
    assert found.contrast.labels == tuple((known > 0).long().tolist())
    assert found.contrast.texts == tuple(TEXTS)
    torch.testing.assert_close(found.certainty, known.abs().sigmoid(), atol=1e-5, rtol=1e-4)


def test_the_surest_of_either_label_are_kept(knowing):
    whole, half = ask(knowing, keep=1.0), ask(knowing, keep=0.5)
    for side in (1, -1):
        own = (side * whole.log_odds > 0).nonzero().flatten()
        surest = whole.log_odds[own].abs().argsort(descending=True)[: (len(own) + 1) // 2]
        chosen = [row for row in half.rows.tolist() if side * whole.log_odds[row] > 0]
        assert chosen == sorted(own[surest].tolist())
    least = float(whole.certainty.median())
    sure = ask(knowing, keep=1.0, least=least)
    assert sure.rows.tolist() == (whole.certainty >= least).nonzero().flatten().tolist()
    assert sure.describe()["certainty"]["least"] >= least
    assert f"{len(sure.rows)} of 24 texts kept" in repr(sure)


def test_answers_of_several_tokens_count_whole():
    """Against plain passes, with a question around the text."""
    model, tokenizer = build("llama").eval(), tiny_tokenizer()
    question, answers = "w1 {text} w2 w2", (" w3 w5", " w4")
    found = es.label_by_expert(
        model, tokenizer, TEXTS[:6], question, answers, keep=1.0, centred=True
    )
    for text, odds in zip(TEXTS, found.log_odds):
        prompt = f"w1 {text} w2 w2"
        one, other = (log_probability(model, *continued(tokenizer, prompt, a)) for a in answers)
        assert float(odds) == pytest.approx(one - other, abs=1e-4)
    assert sum(found.contrast.labels) == 3  # about the median
    assert found.centre == pytest.approx(float(found.log_odds.quantile(0.5)))


def test_answers_that_change_places_change_the_labels(knowing):
    one, other = ask(knowing), ask(knowing, answers=ANSWERS[::-1])
    assert torch.equal(one.rows, other.rows)
    assert other.contrast.labels == tuple(1 - label for label in one.contrast.labels)


def test_a_favoured_answer_is_taken_out_when_asked(knowing):
    """Of texts that are all on one side, the median is still a question of which is more so."""
    positive = [text for text in TEXTS if knowing[2](text) > 0]
    with pytest.raises(ValueError, match=r"' w3' of \d+ and ' w4' of 0 .*pass centred=True"):
        ask(knowing, texts=positive)
    found = ask(knowing, texts=positive, keep=1.0, centred=True)
    known = torch.stack([knowing[2](text) for text in positive])[found.rows]
    assert found.contrast.labels == tuple((known > found.centre).long().tolist())
    assert 0 < sum(found.contrast.labels) < len(found.contrast)


def test_the_targets_own_vectors_come_of_its_labels(knowing):
    """With true labels given by the same rule, they are the same vectors."""
    contrast = ask(knowing, keep=1.0).contrast
    truth = es.ContrastSet.from_texts(TEXTS, [int(knowing[2](text) > 0) for text in TEXTS])
    target, found = build("qwen2").eval(), []
    for some in (contrast, truth):
        states = es.capture(target, tiny_tokenizer(), some)
        alignment = es.align(states, states, "identity")
        pairing = es.LayerPairing.same(states.layers[:1])
        found.append(es.fit_vectors(states, states, alignment, pairing, "mean_difference"))
    assert torch.equal(found[0].vectors[0], found[1].vectors[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "one"}, "texts must be a non-empty list"),
        ({"texts": ["w1", 2]}, "texts must be strings, came int as text 1"),
        ({"question": "is it good?"}, "question must hold {text}"),
        ({"answers": " yes"}, "answers must be two texts"),
        ({"answers": (" w3", " w3")}, "two or more different"),
        ({"keep": 0.0}, "keep must be a share above 0"),
        ({"least": 1.0}, "least must be a probability from 0.5"),
        ({"least": 0.9999999}, "with certainty 1.00 or more .*lower least"),
    ],
)
def test_bad_options_name_the_argument(knowing, options, message):
    with pytest.raises(ValueError, match=message):
        ask(knowing, **options)
