"""Which rows are measured: the two sides, what is left out and counted, what is shown."""

import random

import pytest

import expertsteer as es
from expertsteer.tasks import TaskError
from helpers.questions import question
from helpers.tiny_tokenizer import sentence

pytestmark = pytest.mark.transformers


def test_the_split_depends_on_seed_and_questions_alone(model, tokenizer):
    rows = [question(i) for i in range(40)]
    rows += [question(i, answer=1) for i in range(0, 40, 4)]  # asked twice, answered otherwise
    shuffled = random.Random(3).sample(rows, len(rows))

    def sides(rows, **options):
        on = es.MultipleChoice.from_rows(rows).on(model, tokenizer, **options)
        return {name: {item.prompt for item in part} for name, part in on.items.items()}

    first = sides(rows)
    assert first == sides(shuffled) and first != sides(rows, seed=1)
    assert not first["validation"] & first["test"]
    assert len(first["validation"]) == pytest.approx(0.4 * 40, abs=2)
    assert len(sides(rows, validation=0.1)["validation"]) == pytest.approx(4, abs=1)
    told = [row | {"split": ("test", "validation")[i % 2]} for i, row in enumerate(rows[:40])]
    given = sides(told)
    assert given["test"] == {row["question"] for row in told[::2]}


def test_texts_longer_than_the_context_are_cut_or_left_out_and_counted(model, tokenizer):
    texts = [sentence(5, seed=i) for i in range(6)] + [sentence(90, seed=i) for i in (7, 8)]
    rows = [{"text": t, "split": ("validation", "test")[i % 2]} for i, t in enumerate(texts)]
    cut = es.Perplexity.from_rows(rows).on(model, tokenizer)
    assert cut.excluded == {
        f"{split} texts cut to the context of 64 tokens": 1 for split in ("validation", "test")
    }
    assert len(cut.score("test")) == 4
    out = es.Perplexity.from_rows(rows, long="exclude").on(model, tokenizer)
    assert len(out.score("test")) == 3 and sum(out.excluded.values()) == 2
    assert "validation items longer than the context of 64 tokens" in out.excluded
    # The prompt of 61 words and <s> take 62 places, three of four new tokens are read as well.
    rows = [{"prompt": sentence(n, seed=n), "answer": "w1"} for n in (3, 4, 5, 61, 62, 63)]
    sides = [row | {"split": ("validation", "test")[i % 2]} for i, row in enumerate(rows)]
    with pytest.raises(TaskError, match="2 of 3 test items are longer than the context"):
        es.Generation.from_rows(sides, max_new_tokens=4).on(model, tokenizer)
    one = es.Generation.from_rows(sides, max_new_tokens=3).on(model, tokenizer)
    assert one.excluded["test items longer than the context of 64 tokens"] == 1
    assert [len(one.items[split]) for split in ("validation", "test")] == [2, 2]
    fits = es.Generation.from_rows(sides, max_new_tokens=1).on(model, tokenizer)
    assert not fits.excluded and len(fits.score("test")) == 3
    with pytest.raises(TaskError, match="longer than the context of 64 tokens; shorten the prompt"):
        fits.score("test", "w1 w2 ")
    few = es.MultipleChoice.from_rows([question(i) for i in range(8)])
    assert few.on(model, tokenizer, max_length=6).excluded


def test_examples_show_what_was_answered(model, tokenizer):
    on = es.MultipleChoice.from_rows([question(i) for i in range(10)]).on(model, tokenizer)
    scores, texts = on.measure("test")
    for item, shown, text, score in zip(on.items["test"], on.examples(), texts, scores[:, 0]):
        assert shown == (item.prompt, item.choices[0], text, float(score))
