"""The tasks for real models: parts apart, counts, the same rows every time, right answers."""

import ast
import operator
from itertools import combinations

import pytest

from benchmarks.real.tasks import TASKS, behaviour, claims, facts, neutral, sums
from benchmarks.real.tasks.task import COUNTS, RealTask, Row, parted

each = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
SIGNS = {"+": operator.add, "-": operator.sub}


@each
def test_no_prompt_of_the_test_is_fitted_or_validated_on(task):
    prompts = {part: {row.prompt for row in task.pool(part)} for part in COUNTS}
    texts = {part: {r.prompt + c for r in task.pool(part) for c in r[1:]} for part in COUNTS}
    assert not prompts["test"] & (prompts["fitting"] | prompts["validation"])
    assert not texts["fitting"] & texts["validation"]


@each
def test_every_part_has_its_count_of_different_rows(task):
    for part, count in COUNTS.items():
        assert len(set(task.rows(part))) == count
    assert COUNTS["test"] >= 400
    items = task.items().items
    assert [item.side for item in items].count("test") == COUNTS["test"]
    assert [item.side for item in items].count("validation") == COUNTS["validation"]


@each
def test_rows_are_the_same_every_time_and_seeds_differ(task):
    assert task.rows("fitting", 1) == task.rows("fitting", 1)
    assert task.contrast(0).texts != task.contrast(1).texts
    assert len(task.contrast(0)) == 2 * COUNTS["fitting"]


@each
def test_the_wanted_continuation_is_the_items_answer(task):
    rows = [row for part in ("validation", "test") for row in task.rows(part)]
    for row, item in zip(rows, task.items().items, strict=True):
        assert (item.prompt, item.choices[item.right]) == (row.prompt, row.positive)
        assert item.choices == (row.positive, row.negative)


@each
def test_the_examples_of_a_prompt_are_fitted_rows(task):
    lines = task.shots(2).splitlines()
    fitted = {row.prompt + row.positive for row in task.rows("fitting", 2)}
    assert set(lines) <= fitted and len(lines) == 4 and task.shots(2).endswith("\n")


def test_sums_are_right_and_wrong_ones_are_near():
    for row in TASKS["arithmetic"].pool("test"):
        a, sign, b, equals = row.prompt.split()
        assert equals == "=" and SIGNS[sign](int(a), int(b)) == int(row.positive) > 0
        assert 1 <= abs(int(row.positive) - int(row.negative)) <= 10 and int(row.negative) >= 0


@pytest.mark.parametrize("part", COUNTS)
def test_python_says_what_its_expressions_are_worth(part):
    for row in TASKS["python"].pool(part):
        checked = f"{row.prompt}{row.positive}"
        ast.parse(checked)
        exec(checked, {})
        with pytest.raises(AssertionError):
            exec(f"{row.prompt}{row.negative}", {})


def test_words_of_the_expressions_are_apart():
    parts = parted("words", sums.WORDS)
    for one, other in combinations(parts.values(), 2):
        assert not set(one) & set(other)
    for part, words in parts.items():
        quoted = {t for r in TASKS["python"].pool(part) for t in r.prompt.split("'")[1::2]}
        assert {word for word in quoted if len(word) > 1} <= set(words)


def test_things_feelings_acts_and_sentences_of_the_test_are_its_own():
    lists = {
        "things": behaviour.THINGS,
        "feelings": behaviour.FEELINGS,
        "acts": behaviour.ACTS,
        "objects": behaviour.OBJECTS,
    }
    for name, entries in lists.items():
        assert len(set(entries)) == len(entries)
        parts = parted(name, entries)
        assert sorted(e for part in parts.values() for e in part) == sorted(entries)
    for forms in (behaviour.OPENINGS, behaviour.PLANS, claims.FORMS):
        assert not set(forms["seen"]) & set(forms["new"])
    for entry in (*behaviour.FEELINGS, *behaviour.ACTS):
        wanted, unwanted = entry.split("/")
        assert wanted and unwanted and wanted != unwanted


def test_a_subject_of_facts_is_in_one_part_and_its_answer_is_none_of_the_wrong_ones():
    for relation in facts.RELATIONS.values():
        assert not set(relation.seen) & set(relation.new)
        for right, *wrong in relation.answers.values():
            assert right not in wrong and len(wrong) in (0, facts.WRONG)
    for name, relation in facts.RELATIONS.items():
        subjects = parted(f"facts {name}", list(relation.answers))
        for one, other in combinations(subjects.values(), 2):
            assert not set(one) & set(other)


@pytest.mark.parametrize("part", COUNTS)
def test_half_of_the_claims_are_true_and_so_no_constant_answer_helps(part):
    rows = TASKS["claims"].pool(part)
    assert sum(row.positive == " true" for row in rows) * 2 == len(rows)
    for row in rows:
        assert {row.positive, row.negative} == {" true", " false"}


@pytest.mark.parametrize("part", COUNTS)
def test_verdicts_are_right(part):
    kind_of = {thing: kind for kind, things in claims.KINDS.items() for thing in things.split()}
    for claim, true in claims.claims_of(part):
        if " than " in claim:
            a, _, which, _, b = claim.split()
            assert true == ((int(a) > int(b)) == (which == "more"))
        else:
            thing, kind = claim.split(" is ")
            assert true == (kind_of[thing] == kind)


def test_a_task_with_too_short_lists_says_so():
    task = RealTask("short", "nothing", lambda part: [Row("a", " b", " c")])
    with pytest.raises(ValueError, match="task short: test needs 400 different rows, came 1"):
        task.rows("test")


def test_neutral_texts_are_no_prompts_of_a_task():
    assert len(set(neutral.NEUTRAL)) == len(neutral.NEUTRAL) == 8
    for task in TASKS.values():
        for row in task.rows("test"):
            assert row.prompt not in neutral.NEUTRAL
