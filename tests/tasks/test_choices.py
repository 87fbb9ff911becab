"""Choices and next tokens are scored by their log-probability, counted by hand."""

import math

import pytest
import torch

import expertsteer as es
from expertsteer.models.scoring import choice_probabilities
from expertsteer.tasks import TaskError
from helpers.likelihood import continued, log_probability
from helpers.questions import CHOICES, question
from helpers.tiny_tokenizer import sentence

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("normalize", [False, True])
def test_choices_are_compared_by_their_log_probability(model, tokenizer, normalize):
    rows = [question(i, answer=i % 2) for i in range(12)]
    task = es.MultipleChoice.from_rows(rows, normalize=normalize)
    on = task.on(model, tokenizer, validation=0.5)
    for split, items in on.items.items():
        scores, texts = on.measure(split, "w3 w5 ")
        assert scores.shape == (len(items), 2)
        for item, (right, probability), text in zip(items, scores, texts):
            told = []
            for choice in item.choices:
                ids, start = continued(tokenizer, "w3 w5 " + item.prompt, " " + choice)
                divisor = len(ids) - start if normalize else 1
                told.append(log_probability(model, ids, start) / divisor)
            compared = torch.tensor(told)
            assert text == item.choices[int(compared.argmax())]
            assert right == float(int(compared.argmax()) == item.right)
            assert probability == pytest.approx(float(compared.softmax(0)[item.right]), abs=1e-5)


def test_equal_numbers_of_choices_give_what_choice_probabilities_gives(model, tokenizer):
    rows = [question(1, question=sentence(4, seed=i), answer="w7 w8") for i in range(8)]
    on = es.MultipleChoice.from_rows(rows).on(model, tokenizer)
    prompts = [item.prompt for item in on.items["test"]]
    belief = choice_probabilities(model, tokenizer, prompts, [" " + c for c in CHOICES[:3]])
    torch.testing.assert_close(on.score("test")[:, 1], belief[:, 1])


def test_a_tie_is_not_right(tokenizer):
    class Flat(torch.nn.Module):
        config = None

        def forward(self, input_ids):
            shape = (*input_ids.shape, 64)
            return type("Out", (), {"logits": torch.zeros(shape)})()

    rows = [{"question": f"w{i}", "choices": ["w4", "w5"], "answer": i % 2} for i in range(6)]
    on = es.MultipleChoice.from_rows(rows).on(Flat(), tokenizer)
    assert not on.score("test")[:, 0].any() and bool((on.score("test")[:, 1] == 0.5).all())


def test_the_joiner_is_left_out_behind_white_space(model, tokenizer):
    rows = [{"question": "w1 w2 ", "choices": ["w4", "w5"], "answer": 0}, question(1)] * 2
    on = es.MultipleChoice.from_rows(rows, joiner=" w9 ").on(model, tokenizer, validation=0.5)
    ids = {item.prompt: on.task.encoded(tokenizer, [item])[0][0][0] for item in on.task.items}
    assert ids["w1 w2 "] == tokenizer("w1 w2 w4")["input_ids"]
    assert tokenizer("w9")["input_ids"][-1] in ids[question(1)["question"]]


def test_the_next_token_has_its_probability_over_the_vocabulary(model, tokenizer):
    rows = [{"prompt": sentence(3, seed=i), "answer": f"w{i + 3}"} for i in range(6)]
    on = es.NextToken.from_rows(rows).on(model, tokenizer)
    for item, (value,) in zip(on.items["test"], on.score("test")):
        ids, start = continued(tokenizer, item.prompt, " " + item.answer)
        expected = math.exp(log_probability(model, ids, start))
        assert len(ids) == start + 1 and value == pytest.approx(expected, abs=1e-6)


def test_a_next_token_of_several_tokens_is_refused_with_the_way_out(model, tokenizer):
    rows = [{"prompt": "w1", "answer": "w2"}, {"prompt": "w3", "answer": "w4 w5"}] * 2
    with pytest.raises(TaskError, match=r"row 1: answer 'w4 w5' adds 2 tokens.*task type choice"):
        es.NextToken.from_rows(rows).on(model, tokenizer)
