"""States that guidance is fitted on, against captures and passes of single texts."""

import pytest
import torch

import expertsteer as es
from expertsteer.guidance.knowing import SHOWN, before_prompt, states_of_knowing, states_of_texts
from expertsteer.guidance.readings import written
from helpers.families import LAYERS, build
from helpers.passes import outputs_of
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers
PROMPTS = [sentence(3 + i % 3, seed=i) for i in range(5)]
ANSWERS = [" w5", " w7 w1", " w2 w2 w9", " w5", " w8 w3"]


@pytest.fixture(scope="module")
def model():
    return build("llama").eval()


def states_after(model, text, layer):
    """The state at the last token, of a pass by itself."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad(), outputs_of([model.model.layers[layer]]) as seen:
        model(ids)
    return seen[0][0, -1]


def test_states_of_texts_are_those_of_a_capture(model):
    texts = [p + a for p, a in zip(PROMPTS, ANSWERS)] + PROMPTS
    found = states_of_texts(model, tiny_tokenizer(), texts, [0, 2], batch_size=2)
    contrast = es.ContrastSet.unlabelled(texts)
    expected = es.capture(model, tiny_tokenizer(), contrast, layers=[0, 2], progress=False)
    torch.testing.assert_close(found, expected.states)


def test_states_of_knowing_are_those_behind_the_shown_answer(model):
    tokenizer = tiny_tokenizer()
    answered = written(tokenizer, PROMPTS, ANSWERS)
    found = states_of_knowing(model, tokenizer, PROMPTS, ANSWERS, answered, [1], batch_size=3)
    texts = []
    for prompt, answer in zip(PROMPTS, ANSWERS):
        words = answer.split()
        shown = f"{prompt}{answer}\n{prompt}"
        texts += [" ".join([shown, *words[:n]]) for n in range(len(words) + 1)]
    assert found.shape[1] == len(texts) == sum(len(one.places) for one in answered)
    for state, text in zip(found[0], texts):
        torch.testing.assert_close(state, states_after(model, text, 1))


def test_without_showing_they_are_the_ordinary_ones_and_several_are_averaged(model):
    tokenizer = tiny_tokenizer()
    answered = written(tokenizer, PROMPTS, ANSWERS)

    def states(*showings):
        given = PROMPTS, ANSWERS, answered
        return states_of_knowing(model, tokenizer, *given, showings=showings)

    read = [text for one in answered for text in one.texts]
    ordinary = states_of_texts(model, tokenizer, read)
    assert ordinary.shape[0] == LAYERS
    torch.testing.assert_close(states(None), ordinary)
    mean = (states(SHOWN) + states(None)) / 2
    torch.testing.assert_close(states(SHOWN, None), mean)
    assert not torch.allclose(states(SHOWN), ordinary)


def test_a_showing_is_a_template_or_a_function_and_shows_the_answer():
    assert before_prompt(SHOWN, "{answer}? ", "x{prompt}") == "{answer}? x{prompt}\n"
    assert before_prompt(lambda p, a: a + p, "a", "b") == "ba"
    for bad in ("{prompt}\n", lambda p, a: p, lambda p, a: None):
        with pytest.raises(ValueError, match="must show the answer"):
            before_prompt(bad, "a", "b")
