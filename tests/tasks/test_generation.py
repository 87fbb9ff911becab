"""Generated text: where it ends, and what it scores."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

import expertsteer as es
from expertsteer.models.generation import before_stop, generate_texts
from expertsteer.tasks import TaskError
from expertsteer.tasks.scorers import contains, exact_match, normalized
from helpers.families import VOCABULARY
from helpers.tiny_tokenizer import sentence

pytestmark = pytest.mark.transformers


def test_generation_in_a_left_padded_batch_is_what_each_prompt_gives_alone(model, tokenizer):
    rows = [{"prompt": sentence(1 + 2 * i, seed=i), "answer": "w1"} for i in range(5)]
    task = es.Generation.from_rows(rows, max_new_tokens=6)
    together = task.on(model, tokenizer, batch_size=8).measure("test").texts
    alone = task.on(model, tokenizer, batch_size=1).measure("test").texts
    assert together == alone
    item = task.on(model, tokenizer).items["test"][0]
    ids = torch.tensor([tokenizer(item.prompt)["input_ids"]])
    out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert alone[0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_generation_ends_before_its_stop_text(model, tokenizer):
    rows = [{"prompt": sentence(2 + i, seed=i), "answer": ["w1", "w2"]} for i in range(5)]
    free = es.Generation.from_rows(rows, max_new_tokens=8).on(model, tokenizer)
    texts = free.measure("test").texts
    stop = texts[0].split()[2]
    stopped = es.Generation.from_rows(rows, max_new_tokens=8, stop=(stop,)).on(model, tokenizer)
    assert stopped.measure("test").texts == [before_stop(t, [stop]) for t in texts]
    assert texts[0].startswith(stopped.measure("test").texts[0])


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single letters, which can spell any stop text."""
    from transformers import PreTrainedTokenizerFast

    words = {letter: i for i, letter in enumerate(["<s>", *"abcdefghijklmnopqrstuvwxyz .,:;\n"])}
    words |= {f"<{i}>": i for i in range(len(words), VOCABULARY)}
    made = Tokenizer(WordLevel(words, unk_token="<s>"))
    made.pre_tokenizer, made.decoder = Split("", "isolated"), Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<s>")


def test_a_row_ends_with_its_stop_text_and_not_with_its_prompts(model, letters, monkeypatch):
    rows = [letters(text)["input_ids"] for text in ("once", "a longer one : ", "b")]
    options = {"max_new_tokens": 12, "batch_size": 4}
    free = generate_texts(model, letters, rows, **options)
    widths, generate = [], model.generate

    def watched(**given):
        widths.append(generate(**given).shape[1] - given["input_ids"].shape[1])
        return generate(**given)

    monkeypatch.setattr(model, "generate", watched)
    for stop in ([text[3:5] for text in free], [free[0][-2:]], ["never ; seen"]):
        assert generate_texts(model, letters, rows, stop=stop, **options) == [
            before_stop(text, stop) for text in free
        ]
    assert widths[0] <= 8 and widths[2] == 12
    (crossing,) = generate_texts(model, letters, rows[:1], stop=["e" + free[0][0]], **options)
    assert crossing == before_stop(free[0], ["e" + free[0][0]]) and crossing


def test_generated_text_is_scored_as_asked(model, tokenizer):
    rows = [{"prompt": sentence(2 + i, seed=i), "answer": ["w1", "w2"]} for i in range(5)]
    seen = []

    def length(text, answer):
        seen.append(answer)
        return len(text.split())

    on = es.Generation.from_rows(rows, scoring=length, max_new_tokens=3).on(model, tokenizer)
    scores, texts = on.measure("test")
    assert scores[:, 0].tolist() == [len(t.split()) for t in texts] and seen[0] == ["w1", "w2"]
    assert on.title.startswith("length on ")
    named = es.Generation.from_rows(rows, scoring="expertsteer.tasks.scorers:contains")
    assert named._scorer is contains
    bad = es.Generation.from_rows(rows, scoring=lambda text, answer: float("nan"))
    with pytest.raises(TaskError, match="finite number, came nan for rows, row"):
        bad.on(model, tokenizer).score("test")


def test_texts_are_normalised_before_they_are_compared():
    assert normalized("  The\n Ｏwl!?  ") == "the owl"
    assert exact_match("Paris.", ["London", "paris"]) == 1 and exact_match("in Paris", "Paris") == 0
    assert contains("It is in PARIS, there", "paris") == 1 and contains("parish", "paris") == 0
    assert contains("a (b) c", "(b)") == 1
