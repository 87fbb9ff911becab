"""Tasks of one's own: what is scored, what is refused, and what is left out and counted."""

import json
import math
import random

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

import expertsteer as es
from expertsteer.models.generation import before_stop, generate_texts
from expertsteer.models.scoring import choice_probabilities, mean_loss
from expertsteer.tasks import TASKS, TaskError, load_task
from expertsteer.tasks.scorers import contains, exact_match, normalized
from helpers.families import VOCABULARY, build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

CHOICES = ["w4", "w7 w8", "w7 w9 w2", "w11", "w12 w13"]


@pytest.fixture(scope="module")
def model():
    return build("llama", layers=2).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def question(i, **more):
    """A row whose number of choices depends on ``i``."""
    choices = CHOICES[: 2 + i % 4]
    return {"question": sentence(2 + i % 5, seed=i), "choices": choices, "answer": 0} | more


def log_probability(model, tokenizer, prompt, continuation):
    """Of the continuation's tokens, one unpadded pass in double precision; and their number."""
    start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(prompt + continuation)["input_ids"]
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return float(sum(scores[i - 1, ids[i]] for i in range(start, len(ids)))), len(ids) - start


@pytest.mark.parametrize("normalize", [False, True])
def test_choices_are_compared_by_their_log_probability(model, tokenizer, normalize):
    rows = [question(i, answer=i % 2) for i in range(12)]
    task = es.MultipleChoice.from_rows(rows, normalize=normalize)
    on = task.on(model, tokenizer, validation=0.5)
    for split, items in on.items.items():
        scores, texts = on.measure(split, "w3 w5 ")
        assert scores.shape == (len(items), 2)
        for item, (right, probability), text in zip(items, scores, texts):
            told = [
                log_probability(model, tokenizer, "w3 w5 " + item.prompt, " " + c)
                for c in item.choices
            ]
            compared = torch.tensor([total / (n if normalize else 1) for total, n in told])
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
        total, count = log_probability(model, tokenizer, item.prompt, " " + item.answer)
        assert count == 1 and value == pytest.approx(math.exp(total), abs=1e-6)


def test_a_next_token_of_several_tokens_is_refused_with_the_way_out(model, tokenizer):
    rows = [{"prompt": "w1", "answer": "w2"}, {"prompt": "w3", "answer": "w4 w5"}] * 2
    with pytest.raises(TaskError, match=r"row 1: answer 'w4 w5' adds 2 tokens.*task type choice"):
        es.NextToken.from_rows(rows).on(model, tokenizer)


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


def test_perplexity_weighs_every_token_the_same(model, tokenizer):
    texts = [sentence(3 + 4 * i, seed=i) for i in range(6)]
    on = es.Perplexity.from_texts(texts).on(model, tokenizer, validation=0.3)
    kept = [item.prompt for item in on.items["test"]]
    losses = mean_loss(model, tokenizer, kept)
    tokens = torch.tensor([len(tokenizer(t)["input_ids"]) - 1 for t in kept])
    expected = float((losses * tokens).sum() / tokens.sum())
    assert -float(on.score("test").mean()) == pytest.approx(expected, rel=1e-6)
    told = on.measure("test").texts[0]
    assert told == f"{losses[0]:.3f} nats per token"
    behind = mean_loss(model, tokenizer, kept, context="w1 w2 ")
    expected = float((behind * tokens).sum() / tokens.sum())
    assert -float(on.score("test", "w1 w2 ").mean()) == pytest.approx(expected, rel=1e-6)


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


def test_examples_show_what_was_answered(model, tokenizer):
    on = es.MultipleChoice.from_rows([question(i) for i in range(10)]).on(model, tokenizer)
    scores, texts = on.measure("test")
    for item, shown, text, score in zip(on.items["test"], on.examples(), texts, scores[:, 0]):
        assert shown == (item.prompt, item.choices[0], text, float(score))


ROWS = [
    ("choice", question(0) | {"answer": None}, "line 2: 'answer' missing"),
    ("choice", question(0, answer="w60"), "line 2: answer 'w60' is not among the choices"),
    ("choice", question(0, answer=2), "an index from 0 to 1, came 2"),
    ("choice", question(0, answer=True), "an index from 0 to 1, came True"),
    ("choice", question(0, choices=["w4", "w4 "]), "choice 'w4 ' stands there twice"),
    ("choice", question(0, choices=["w4", "  "]), "choices must be texts that are not blank"),
    ("choice", question(0, choices=["w4"]), "'choices' must be a list of two or more"),
    ("choice", question(0, question=""), "'question' must be a text that is not blank"),
    ("choice", question(0, prompt="w1"), "expected one of 'question' or 'prompt'"),
    ("choice", question(0, split="train"), "'split' must be one of"),
    ("choice", ["w1"], "expected an object"),
    ("choice", "nonsense", "line 2: not valid JSON"),
    ("generation", {"prompt": "w1"}, "line 2: 'answer' missing"),
    ("generation", {"prompt": "w1", "answer": []}, "'answer' must be a text or a list"),
    ("next-token", {"prompt": "w1", "answer": 3}, "'answer' must be a text"),
    (
        "next-token",
        {"prompt": "w1", "answer": 1, "choices": {"text": ["w2", "w3"], "label": ["A", "B"]}},
        "'choices' must be a list of two or more texts, came {'text'",
    ),
    ("next-token", {"prompt": "w1", "answer": 1, "choices": "w2"}, "'choices' must be a list"),
    ("next-token", {"prompt": "w1", "answer": 2, "choices": ["w2", "w3"]}, "from 0 to 1, came 2"),
    ("perplexity", {"answer": "w1"}, "expected one of 'text' or 'prompt', came none"),
]
GOOD = {
    "choice": question(1),
    "generation": {"prompt": "w1", "answer": "w2"},
    "next-token": {"prompt": "w1", "answer": "w2"},
    "perplexity": {"text": "w1 w2"},
}


@pytest.mark.parametrize(("kind", "row", "named"), ROWS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, kind, row, named):
    path = tmp_path / "mine.jsonl"
    bad = row if row == "nonsense" else json.dumps(row)
    path.write_text(json.dumps(GOOD[kind]) + "\n" + bad + "\n")
    with pytest.raises(TaskError) as caught:
        load_task(path, kind)
    assert named in str(caught.value) and "mine.jsonl: 1 of 2 rows" in str(caught.value)
    assert [where for where, _ in caught.value.problems] == ["line 2"]


def test_rows_that_this_tokenizer_leaves_nothing_of_are_named(model, tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [question(1), {"question": "w1", "choices": ["w2", "\x00"], "answer": 0}] * 2
    rows += [{"question": "w1", "choices": ["unknown", "foreign"], "answer": 0}]
    path.write_text("\n".join(map(json.dumps, rows)))

    def words(texts, **options):  # knows no control characters, and maps strangers to 3
        known = tiny_tokenizer()
        return {"input_ids": [known(t.replace("\x00", ""))["input_ids"] for t in texts]}

    with pytest.raises(TaskError) as caught:
        load_task(path).on(model, words)
    assert [where for where, _ in caught.value.problems] == ["line 2", "line 4", "line 5"]
    assert "has no tokens of its own" in str(caught.value) and "mine.jsonl" in str(caught.value)
    assert "choices 'unknown' and 'foreign' are the same tokens" in str(caught.value)


@pytest.mark.parametrize("kind", TASKS)
def test_empty_and_missing_files_are_named(tmp_path, kind):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(TaskError, match="empty.jsonl holds no rows"):
        load_task(path, kind)
    with pytest.raises(TaskError, match="there is none at"):
        load_task(tmp_path / "missing.jsonl", kind)


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "there is none at"), (b"", "holds no text"), (b"\xff\xfe", "no UTF-8 text")],
)
def test_a_text_file_that_cannot_be_read_is_named(tmp_path, content, named):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskError, match=f"(?s)(texts.txt.*{named}|{named}.*texts.txt)"):
        load_task(path, "perplexity")
    with pytest.raises(TaskError, match="task must name a JSON-lines file, came None"):
        load_task(None)


def test_perplexity_reads_texts_one_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2\n\nw3 w4 w5\n")
    task = load_task(path, "perplexity")
    assert [item.prompt for item in task.items] == ["w1 w2", "w3 w4 w5"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda on: load_task("x", "essay"), "kind must be one of"),
        (lambda on: on(es.MultipleChoice.from_rows([question(1)] * 9)), "on the validation side"),
        (lambda on: on(rows_of(9), validation=1.0), "validation must be a share"),
        (lambda on: on(rows_of(9), batch_size=0), "batch_size must be"),
        (lambda on: on(rows_of(9), max_length=1), "max_length must be"),
        (lambda on: on(rows_of(9)).score("train"), "split must be one of"),
        (lambda on: on(rows_of(4, split="test")), "0 of 4 rows are on the validation side"),
        (lambda on: on(rows_of(4, last={"split": "test"})), "row 0 has no 'split'"),
        (
            lambda on: on(
                es.MultipleChoice.from_rows([question(1, split=s) for s in ("validation", "test")])
            ),
            "ask the same and name different splits",
        ),
        (lambda on: es.Generation.from_rows(ONE, max_new_tokens=0), "max_new_tokens must be"),
        (lambda on: es.Generation.from_rows(ONE, stop=("",)), "stop must be texts"),
        (lambda on: es.Generation.from_rows(ONE, scoring="best"), "scoring must be one of"),
        (lambda on: es.Generation.from_rows(ONE, scoring="no.such:thing"), "cannot be imported"),
        (lambda on: es.Generation.from_rows(ONE, scoring="math:pi"), "is not a function"),
        (lambda on: es.Perplexity.from_texts("w1 w2"), "came a single string"),
        (lambda on: es.Perplexity.from_texts(["w1 w2"], long="never"), "long must be"),
        (lambda on: on(es.Perplexity.from_texts(["", *ABC])), "text 0: 'text' must be a text"),
    ],
)
def test_bad_input_is_named(model, tokenizer, make, named):
    with pytest.raises(TaskError, match=named):
        make(lambda task, **options: task.on(model, tokenizer, **options))


ONE = [{"prompt": "w1", "answer": "w2"}]
ABC = ["w1 w2", "w3 w4", "w5 w6"]


def rows_of(count, last=None, **more):
    rows = [question(i, **more) for i in range(count)]
    rows[-1] |= last or {}
    return es.MultipleChoice.from_rows(rows)


def test_a_text_without_a_second_token_is_named(model):
    bare = tiny_tokenizer(bos=False)
    with pytest.raises(TaskError, match="text 1: a loss needs at least 2 tokens"):
        es.Perplexity.from_texts(["w1 w2", "w3", *ABC]).on(model, bare)
