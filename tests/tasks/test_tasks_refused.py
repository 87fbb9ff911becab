"""Rows, files and settings that make no task are refused by name."""

import json

import pytest

import expertsteer as es
from expertsteer.tasks import TASKS, TaskError, load_task
from helpers.questions import question
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers

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
ONE = [{"prompt": "w1", "answer": "w2"}]


def rows_of(count, last=None, **more):
    rows = [question(i, **more) for i in range(count)]
    rows[-1] |= last or {}
    return es.MultipleChoice.from_rows(rows)


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
        (
            lambda on: on(es.Perplexity.from_texts(["", "w1 w2", "w3 w4"])),
            "text 0: 'text' must be a text",
        ),
    ],
)
def test_bad_input_is_named(model, tokenizer, make, named):
    with pytest.raises(TaskError, match=named):
        make(lambda task, **options: task.on(model, tokenizer, **options))
