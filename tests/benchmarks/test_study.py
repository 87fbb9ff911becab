"""The study's bookkeeping: cells, rules and tables, on made-up results and one small real cell."""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import mean

import pytest
import torch
from scipy import stats

from benchmarks.study import cases, experts, report, results, rules, study, tables, tasks
from expertsteer.demo import world
from expertsteer.models.scoring import choice_probabilities

CELL = results.Cell("pairs", "demo", "bundled", 20, 1, 0.01)


def row(name, expert_layer, target_layer, validation, accuracy, **more):
    entries = {"name": name, "expert_layer": expert_layer, "layers": [target_layer]}
    entries |= {"validation": validation, "validation_probability": validation}
    entries |= {"accuracy": accuracy, "probability": accuracy, "auc": 0.5, "explained": 0.5}
    return [(entries | more).get(column) for column in results.COLUMNS]


def pair_cell(seed=1, nats=((1.0, 4.0), (2.0, 3.0)), effects=((0.9, 0.3), (0.6, 0.5)), size=20):
    """Two expert and two target layers; validation sees the test accuracy itself."""
    rows = [
        row(rules.PAIRS, e, t, effects[e][t], effects[e][t]) for e, t in product(range(2), range(2))
    ]
    cell = replace(CELL, seed=seed, size=size)
    return asdict(cell) | {"nats": [list(line) for line in nats], "rows": rows, "seconds": 1.0}


def test_items_tokenized_once_score_like_choice_probabilities():
    task = tasks.demo_task()
    questions = world.questions("test")[:7]
    choices = [[f" {choice}" for choice in q.choices] for q in questions]
    prompts = [q.prompt for q in questions]
    items = tasks.Items.of(task.tokenizer, prompts, choices)
    expected = choice_probabilities(task.model, task.tokenizer, prompts, choices)
    torch.testing.assert_close(items.beliefs(task.model), expected, rtol=1e-5, atol=1e-7)


def test_the_wanted_answer_comes_first_and_is_the_specialists():
    task = tasks.demo_task()
    wanted = [q.answers[world.SPECIALIST] for q in world.questions("validation")]
    sequences = task.items["validation"].sequences[:: task.items["validation"].choices]
    told = [task.tokenizer.decode(ids).split()[-1] for ids, _ in sequences]
    assert told == wanted


def test_stories_are_fresh_by_seed_and_the_splits_share_no_name_thing_or_place():
    one, other = (tasks.story_contrast(40, seed) for seed in (1, 2))
    assert one.texts == tasks.story_contrast(40, 1).texts != other.texts
    for sad, glad in zip(one.texts[::2], one.texts[1::2]):
        assert sad != glad and sad.split(".")[-2] == glad.split(".")[-2]
    for words in (tasks.NAMES, tasks.THINGS, tasks.PLACES):
        split = [set(group) for group in words.values()]
        assert sum(map(len, split)) == len(set().union(*split))
    prompts, choices = tasks.story_prompts("test", 20)
    assert len(set(prompts)) > 15 and set(choices) == {tasks.CHOICES}


def test_letters_are_tokens_and_bring_every_text_back():
    tokenizer = experts.letter_tokenizer()
    text = world.questions("test")[0].prompt
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) + 1 and tokenizer.unk_token_id not in ids
    with pytest.raises(ValueError, match="bundled"):
        experts.expert("nobody", Path("."))


def test_a_line_is_written_once_also_by_many_at_once(tmp_path):
    file = tmp_path / "study.jsonl"
    entries = [pair_cell(seed) for seed in (1, 2, 3)] * 4
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda entry: results.append(file, entry), entries))
    seeds = [json.loads(line)["seed"] for line in file.read_text().splitlines()]
    assert sorted(seeds) == [1, 2, 3]


def test_half_a_line_of_a_killed_run_is_measured_again(tmp_path):
    file = tmp_path / "study.jsonl"
    results.append(file, pair_cell(1))
    file.write_text(file.read_text() + '{"kind":"pairs","ta')
    assert [key[4] for key in results.finished(file)] == [1]
    results.append(file, pair_cell(2))
    assert sorted(key[4] for key in results.finished(file)) == [1, 2]


def test_a_run_measures_what_is_missing_and_shares_cells_out(tmp_path, monkeypatch, capsys):
    measured = []

    class Lab:
        def __init__(self, *folders):
            pass

        def run(self, cell):
            measured.append(cell)
            return asdict(cell) | {"rows": [], "seconds": 0.0}

    monkeypatch.setattr(study, "Lab", Lab)
    file = tmp_path / "study.jsonl"
    order = list(study.cells(stories=False, quick=True))
    results.append(file, asdict(order[0]) | {"rows": [], "seconds": 0.0})

    def run(*more):
        common = ["run", "--quick", "--cache", str(tmp_path), "--results", str(file)]
        monkeypatch.setattr(sys, "argv", ["study", *common, *more])
        study.main()
        return measured

    assert run("--minutes", "-1") == []
    assert run("--share", "2/2") == order[1::2]
    assert run() == [*order[1::2], *order[2::2]]
    assert set(results.finished(file)) == {cell.key for cell in order}
    assert len(set(order)) == len(order)
    capsys.readouterr()


@pytest.mark.slow
def test_a_small_cell_holds_every_pair_at_the_budget(tmp_path):
    torch.set_num_threads(1)
    lab = cases.Lab(tmp_path)
    task = lab._demo
    few = {
        split: replace(items, sequences=items.sequences[: 6 * items.choices])
        for split, items in task.items.items()
    }
    lab.__dict__["_demo"] = replace(task, items=few, neutral=task.neutral[:4])
    entry = lab.run(CELL)
    rows = rules.rows_of(entry, rules.PAIRS)
    assert {(r["expert_layer"], *r["layers"]) for r in rows} == set(product(range(3), range(4)))
    assert set(cases.OWN) <= {r["name"] for r in rules.rows_of(entry)}
    assert all(0 < r["divergence"] < 3 * CELL.budget for r in rules.rows_of(entry))
    again = json.loads(json.dumps(lab.run(CELL)))
    assert {**again, "seconds": 0} == {**json.loads(json.dumps(entry)), "seconds": 0}


def test_rules_choose_the_pairs_they_are_named_for():
    cell = pair_cell()
    # Lowest: expert layer 0 for target layer 0 and 1 for 1, so .9 and .5; highest: .6 and .3.
    assert rules.by_rule(cell, "lowest information", "accuracy") == 0.9
    assert rules.by_rule(cell, "highest information", "accuracy") == 0.6
    assert rules.by_rule(cell, "validated", "accuracy") == 0.9
    assert rules.by_rule(cell, "same relative depth", "accuracy") == 0.9
    chances = [max(a, b) for a, b in product((0.9, 0.6), (0.3, 0.5))]
    assert rules.by_rule(cell, "random", "accuracy") == pytest.approx(mean(chances))
    assert rules.single(cell, "highest information", "accuracy") == 0.3
    assert rules.single(cell, "random", "accuracy") == pytest.approx(0.575)


def test_validation_decides_and_the_test_is_reported():
    rows = [row("own", 0, 0, 0.9, 0.1), row("own", 1, 1, 0.2, 0.8)]
    cell = pair_cell() | {"rows": rows}
    assert tables.of_kind("own")(cell) == 0.1


def test_correlations_see_an_order_and_its_reverse():
    rising = pair_cell(effects=((0.1, 0.8), (0.2, 0.5)))
    assert rules.correlation(rising, "nats", "accuracy", within=False) == pytest.approx(1)
    falling = pair_cell(effects=((0.9, 0.1), (0.5, 0.4)))
    assert rules.correlation(falling, "nats", "accuracy", within=True) == pytest.approx(-1)
    assert math.isnan(rules.correlation(rising, "auc", "accuracy", within=False))


def test_a_summary_is_students_interval_and_test():
    values = [0.1, 0.3, 0.2, 0.4, 0.15]
    found, expected = rules.summary(values), stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert rules.summary([0.0, 0.0]).p == 1 and rules.summary([0.1, 0.1]).p == 0
    assert math.isnan(rules.summary([0.2]).low)


def test_only_differences_that_survive_the_correction_are_bold():
    values = {"sure": [0.5, 0.51, 0.49, 0.5], "maybe": [0.1, 0.02, 0.12, 0.09], "none": [0.1, -0.1]}
    found = {(name, 20): rules.summary(v) for name, v in values.items()}
    alone = {("maybe", 20): found["maybe", 20]}
    assert "**" in tables.differences("d", ["maybe"], [20], alone)
    table = tables.differences("d", list(values), [20], found)
    assert [line.split("|")[1].strip() for line in table.splitlines() if "**" in line] == ["sure"]


def test_the_report_fills_the_tables_and_leaves_the_words(tmp_path):
    file, document = tmp_path / "study.jsonl", tmp_path / "study.md"
    for seed in (1, 2, 3):
        best = 0.9 - 0.01 * seed
        results.append(file, pair_cell(seed, effects=((best, 0.3), (0.6, 0.5))))
    words = "Before.\n\n<!-- rules -->\nold\n<!-- /rules -->\n\nAfter.\n"
    document.write_text(words)
    report.write_report(results.finished(file), document)
    text = document.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "old" not in text
    assert "bundled, 20" in text and "| lowest information |" in text
    assert (tmp_path / "study_pairs.png").read_bytes()[:4] == b"\x89PNG"
    report.write_report(results.finished(file), document)
    assert document.read_text() == text
