"""The study on real models: cells that go on, and tables of known answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import expertsteer as es
from benchmarks.real import labels, study, tables
from benchmarks.real.methods import ALL, ONCE
from benchmarks.real.tasks import TASKS


def line(task, method, seed, *values):
    rows = [{"name": method, "values": text} for text in values]
    cell = {"task": task, "seed": seed, "method": method}
    models = {"expert": "e", "target": "t", "budget": 0.1}
    return json.dumps(cell | models | {"rows": rows}) + "\n"


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The study takes one; the other tests keep theirs."""
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "real.jsonl"
    path.write_text(
        line("sentiment", "unsteered", 0, "0101")
        + line("sentiment", "random directions", 0, "0101", "0001")
        + line("sentiment", "own RFM", 0, "1101")
        + line("sentiment", "own RFM", 1, "1111")
        + line("facts", "unsteered", 0, "1111")
        + '{"task": "facts", "se'  # of a killed run
    )
    return path


def test_scores_are_means_over_seeds_and_directions_item_by_item(results):
    found = tables.scores(results)
    assert found["sentiment", "own RFM"].tolist() == [1, 1, 0.5, 1]
    assert found["sentiment", "random directions"].tolist() == [0, 0.5, 0, 1]
    assert tables.seeds(results)["sentiment", "own RFM"] == 2
    assert set(found) == {
        *(("sentiment", m) for m in ("unsteered", "random directions", "own RFM")),
        ("facts", "unsteered"),
    }


def test_the_tables_have_what_was_measured_and_say_what_was_not(results, capsys):
    assert tables.main([str(results)]) == 0
    shown = capsys.readouterr().out
    assert "| own RFM | .875 [" in shown and "not measured" in shown
    assert "| own RFM | +.500 [" in shown  # .875 less .375
    assert "Fitting sets per cell: 1, 2." in shown


def test_without_a_finished_cell_there_is_no_table(tmp_path, capsys):
    assert tables.main([str(tmp_path / "none.jsonl")]) == 1
    assert "holds no finished cell" in capsys.readouterr().err


def test_every_cell_comes_once_and_what_no_seed_changes_with_the_first():
    options = study.parsed(["--out", "x"])
    found = list(study.cells(options))
    assert len({cell.key for cell in found}) == len(found)
    assert len(found) == len(TASKS) * (3 * (len(ALL) - len(ONCE)) + len(ONCE))
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert {cell.method for cell in found if cell.seed == 0} == set(ALL)


def test_finished_cells_are_not_run_again(tmp_path, monkeypatch):
    done = []

    def rows_of(context, method):
        done.append((context, method))
        return []

    monkeypatch.setattr(study, "rows_of", rows_of)
    monkeypatch.setattr(study.Lab, "context", lambda *_: SimpleNamespace(figures={}))
    chosen = ["--out", str(tmp_path), "--tasks", "facts", "--seeds", "0", "1"]
    chosen += ["--methods", "unsteered", "own RFM"]
    for expected in (3, 3):  # the second time nothing is left
        assert study.run(study.parsed(chosen)) == 0
        assert len(done) == expected
    assert len(Path(tmp_path, study.NAME).read_text().splitlines()) == 3


def test_a_cell_that_fails_is_told_and_left_for_the_next_time(tmp_path, monkeypatch, capsys):
    def rows_of(context, method):
        raise ValueError("no strength keeps the budget")

    monkeypatch.setattr(study, "rows_of", rows_of)
    monkeypatch.setattr(study.Lab, "context", lambda *_: SimpleNamespace(figures={}))
    chosen = ["--out", str(tmp_path), "--tasks", "facts", "--methods", "unsteered"]
    assert study.run(study.parsed(chosen)) == 1
    assert "no strength keeps the budget" in capsys.readouterr().err
    assert not Path(tmp_path, study.NAME).exists()


def test_the_surest_labels_are_the_largest_and_smallest_in_equal_number():
    certain = torch.tensor([0.1, -3.0, 2.0, -0.2, 5.0, -1.0])
    rows, given = labels.surest(certain, 4)
    assert rows.tolist() == [1, 2, 4, 5]
    assert given.tolist() == [0, 1, 1, 0]


def test_true_labels_come_in_whole_pairs():
    order = torch.arange(20)
    states = es.HiddenStates(torch.randn(1, 20, 2), order % 2, pairs=order // 2)
    rows = labels.true_rows(states, 6, seed=3)
    assert len(rows) == 6 and states.labels[rows].sum() == 3
    assert states.pairs[rows].unique().numel() == 3
    assert not torch.equal(rows, labels.true_rows(states, 6, seed=4))


def test_the_expert_has_a_question_for_every_task():
    assert set(labels.QUESTIONS) == set(TASKS)


def test_what_a_method_tells_beside_its_rows_is_kept_with_its_cell_alone(tmp_path, monkeypatch):
    def rows_of(context, method):
        if method == "own RFM":
            context.figures = {"labels right": 0.9}
        return []

    context = SimpleNamespace(figures={})
    monkeypatch.setattr(study, "rows_of", rows_of)
    monkeypatch.setattr(study.Lab, "context", lambda *_: context)
    chosen = ["--out", str(tmp_path), "--tasks", "facts", "--seeds", "0"]
    study.run(study.parsed([*chosen, "--methods", "own RFM", "unsteered"]))
    first, second = map(json.loads, Path(tmp_path, study.NAME).read_text().splitlines())
    told = {line["method"]: line.get("figures") for line in (first, second)}
    assert told == {"own RFM": {"labels right": 0.9}, "unsteered": None}


def test_prices_are_not_mixed(results, capsys):
    dearer = line("sentiment", "own RFM", 0, "0000").replace('"budget": 0.1', '"budget": 0.5')
    results.write_text(dearer + results.read_text())
    assert tables.scores(results)["sentiment", "own RFM"].tolist() == [1, 1, 0.5, 1]
    assert tables.scores(results, 0.5)["sentiment", "own RFM"].tolist() == [0, 0, 0, 0]
    assert tables.main([str(results), "--budget", "0.2"]) == 1
    assert "no finished cell at budget 0.2" in capsys.readouterr().err


def test_the_share_of_right_labels_is_the_mean_over_fitting_sets(results):
    method = "own RFM, 16 labels of the expert"
    for seed, share in enumerate((0.5, 1.0)):
        cell = json.loads(line("facts", method, seed, "1111"))
        cell["figures"] = {"labels right": share, "labels": 16}
        results.write_text(json.dumps(cell) + "\n" + results.read_text())
    assert tables.labels_right(results)[-1] == f"| {method} | .75 |"
    assert tables.labels_right(results, 0.5) == []
