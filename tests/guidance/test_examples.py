"""Prompts and answers from every form they come in, and every row that cannot be used."""

import json

import pytest

from expertsteer.guidance.examples import Answered, ExamplesError, answered_examples

EXPECTED = (Answered("1 + 1 = ", ("2",)), Answered("a vowel: ", ("a", "e")))
ROWS = [
    {"prompt": "1 + 1 = ", "answer": "2", "more": 1},
    {"prompt": "a vowel: ", "answer": ["a", "e", "a"]},
]


def written(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_every_form_gives_the_same(tmp_path):
    file = written(tmp_path, *map(json.dumps, ROWS))
    pairs = [(row["prompt"], row["answer"]) for row in ROWS]
    for given in (file, str(file), ROWS, pairs, (row for row in ROWS), [*ROWS, ROWS[0]]):
        assert answered_examples(given) == EXPECTED


def test_every_unusable_row_is_told_at_once(tmp_path):
    bad = [
        '{"prompt": "x"}',
        '{"prompt": "", "answer": "y"}',
        '{"prompt": "x", "answer": " "}',
        '{"prompt": "x", "answer": []}',
        '{"prompt": "x", "answer": [1]}',
        '["only one"]',
        "no json",
    ]
    with pytest.raises(ExamplesError) as raised:
        answered_examples(written(tmp_path, json.dumps(ROWS[0]), *bad))
    assert "7 of 8 rows unusable" in str(raised.value)
    assert [where for where, _ in raised.value.problems] == [f"line {i}" for i in range(2, 9)]


def test_one_prompt_with_two_answers_in_two_rows_is_no_choice_of_ours():
    with pytest.raises(ExamplesError, match="other answers in an earlier row"):
        answered_examples([("x", "1"), ("x", "2")])


@pytest.mark.parametrize("given", [{}, 3, [], {"prompt": "x", "answer": "y"}])
def test_what_holds_no_examples_is_refused(given):
    with pytest.raises(ExamplesError, match="examples"):
        answered_examples(given)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ExamplesError, match="none.jsonl cannot be read"):
        answered_examples(tmp_path / "none.jsonl")
