"""``expertsteer evaluate`` as a user meets it: table, verdict, files, and errors in one line."""

import json
import re

import pytest
import torch

import expertsteer as es
from expertsteer.cli.evaluate_input import REPORT
from expertsteer.demo import checkpoint, world
from helpers import HARNESS_TASKS
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import build
from helpers.tiny_tokenizer import sentence


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two small saved models, a contrast set, tasks, neutral text and fitted vectors."""
    root = tmp_path_factory.mktemp("files")
    for name, family, width in (("expert", "gpt2", 24), ("target", "llama", 32)):
        save(build(family, width=width, layers=2), root / name)
    rows = [
        {"text": sentence(4, seed=i) + (" w1" if i % 2 else " w2"), "label": i % 2}
        for i in range(40)
    ]
    choice = [
        {"question": sentence(3, seed=i), "choices": ["w4", "w7", "w9"], "answer": i % 3}
        for i in range(12)
    ]
    written = [{"prompt": sentence(3, seed=i), "answer": "w4"} for i in range(8)]
    texts = [{"text": sentence(6, seed=i)} for i in range(8)]
    tasks = {"contrast": rows, "choice": choice, "next-token": written, "generation": written}
    for name, content in (tasks | {"perplexity": texts}).items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    (root / "neutral.txt").write_text("\n".join(sentence(n, seed=n) for n in (4, 7, 5, 9)))
    es.SteeringVectors({0: torch.ones(32), 1: torch.ones(32)}).save_pretrained(root / "vectors")
    return root


def arguments(files, *more, kind="choice", vectors=True):
    given = ["--vectors", files / "vectors"] if vectors else []
    return [
        *("evaluate", "--target", files / "target", "--device", "cpu", "--random", 1),
        *("--task", files / f"{kind}.jsonl", "--task-type", kind),
        *("--neutral", files / "neutral.txt", *given, *more),
    ]


def test_expert_and_given_vectors_are_reported_together(files, tmp_path):
    method = "expert: Procrustes, lowest pairs"
    done = run(
        *arguments(files, "--expert", files / "expert", "--contrast", files / "contrast.jsonl"),
        *("--method", method, "--report", tmp_path / "out", "--pairs", 1, "--examples", 4),
        *("--curves", "method", "--seed", 3, "--json", "--target-layers", "model.layers"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = [row["name"] for row in document["comparison"]["rows"]]
    given = f"vectors {files / 'vectors'}"
    assert {"unsteered", given, method, "target's own RFM"} <= set(names)
    assert document["method"] == method and list(document["curves"]) == [method]
    assert document["settings"]["command"][:3] == ["expertsteer", "evaluate", "--target"]
    wrong = run(*arguments(files), "--target-layers", "model.blocks")
    assert wrong.returncode == 2 and "model.blocks" in wrong.stderr
    assert document["settings"]["seed"] == 3 and len(document["examples"]) == 4
    assert document["pairing"]["effects"] and len(document["pairing"]["pairs"]) == 1
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored == document
    table = (tmp_path / "out" / "table.md").read_text().replace("\\", "")
    assert all(name in table for name in names)
    assert {entry.name for entry in (tmp_path / "out").iterdir()} <= set(REPORT)


def test_the_demo_pair_shows_table_and_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("task.jsonl", "w") as stream:
        for split, count in (("validation", 10), ("test", 40)):
            for q in world.questions(split)[:count]:
                row = {"question": q.prompt, "choices": q.choices, "split": split}
                stream.write(json.dumps(row | {"answer": q.answers[world.SPECIALIST]}) + "\n")
    with open("contrast.jsonl", "w") as stream:
        for text, label, pair in zip(*world.contrast_texts(80)):
            stream.write(json.dumps({"text": text, "label": label, "pair": pair}) + "\n")
    (tmp_path / "neutral.txt").write_text("\n".join(world.plain_texts(4, seed=3)))
    fitted = run(
        *("fit", "--expert", checkpoint("expert"), "--target", checkpoint("target")),
        *("--contrast", "contrast.jsonl", "--out", "mine", "--device", "cpu", "--null", 0),
    )
    assert fitted.returncode == 0, fitted.stderr
    done = run(
        *("evaluate", "--target", checkpoint("target"), "--task", "task.jsonl"),
        *("--neutral", "neutral.txt", "--vectors", "mine", "--random", 2, "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy on 40 items of task.jsonl" in done.stdout
    assert "vectors mine beats its controls" in done.stdout
    assert "p after Holm's correction over 2 tests" in done.stdout


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        ("choice", ("--normalize",), "accuracy on 7 items"),
        ("next-token", (), "probability of the answer's token on 5 items"),
        ("generation", ("--scoring", "contains", "--stop", "w5", "--max-new-tokens", 3), "answer"),
        ("perplexity", (), "Perplexity, unsteered: "),
    ],
)
def test_every_kind_of_task_is_measured_for_given_vectors(files, kind, options, shown):
    done = run(*arguments(files, "--curves", "none", *options, kind=kind))
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout and "vectors /" in done.stdout
    assert re.search(r"Test items: \d+ better, \d+ worse, \d+ the same", done.stdout)
    assert "Not measured, since it needs the target's states" in done.stdout
    assert "beat" in done.stdout


def test_a_scoring_function_comes_from_the_working_folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scoring.py").write_text("def words(text, answer):\n    return len(text)\n")
    more = ("--scoring", "my_scoring:words", "--max-new-tokens", 2, "--curves", "none")
    done = run(*arguments(files, *more, kind="generation"))
    assert done.returncode == 0, done.stderr
    assert "my_scoring:words on" in done.stdout


def test_a_report_replaces_a_report_and_nothing_else(files, tmp_path):
    folder = tmp_path / "out"
    more = ("--curves", "none", "--report", folder)
    for _ in range(2):
        done = run(*arguments(files, *more))
        assert done.returncode == 0, done.stderr
        assert str(folder) in done.stdout and (folder / "evaluation.json").is_file()
    (folder / "thesis.tex").write_text("years of work")
    refused = run(*arguments(files, *more))
    assert refused.returncode == 2 and "holds 'thesis.tex'" in refused.stderr


def test_tasks_of_the_harness_run_under_the_chosen_vectors(files, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    for name in ("words_choice", "words_read"):
        text = (HARNESS_TASKS / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(HARNESS_TASKS)))
    more = ("--lm-eval-tasks", "words_choice, words_read", "--include-path", tmp_path)
    base = arguments(files, "--curves", "none", *more, "--limit", 4)
    done = run(*base, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["harness"]
    assert [row["metric"] for row in rows] == [
        "acc",
        "acc_norm",
        "word_perplexity",
        "bits_per_byte",
    ]
    assert all(row["items"] == 4 for row in rows)
    assert rows[2]["steered"]["value"] != rows[2]["unsteered"]["value"]


def test_bad_input_is_one_message_and_code_2(files, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "w1", "choices": ["w2", "w3"]}\n')
    missing = tmp_path / "nothing.jsonl"
    (tmp_path / "file").write_text("")
    cases = [
        (arguments(files, vectors=False), "nothing to evaluate"),
        (arguments(files, "--expert", "x", vectors=False), "--expert needs --contrast"),
        (arguments(files, "--task", bad), "bad.jsonl: 1 of 1 rows"),
        (arguments(files, "--task", bad), "line 1: 'answer' missing"),
        (arguments(files, "--task", missing), "there is none at"),
        (arguments(files, "--task", tmp_path / "file"), "holds no rows"),
        (arguments(files, "--neutral", tmp_path / "file"), "holds no text"),
        (arguments(files, "--normalize", kind="perplexity"), "--normalize belongs to"),
        (arguments(files, "--scoring", "contains"), "--scoring belongs to --task-type generation"),
        (arguments(files, "--scoring", "best", kind="generation"), "scoring must be one of"),
        (arguments(files, "--method", "magic"), "method must be one of"),
        (arguments(files, "--report", tmp_path / "file"), "is a file; name a folder"),
        (arguments(files, "--vectors", tmp_path), "holds no steering_vectors"),
        (arguments(files, "--budget", 0), "budget must be more than 0"),
        (arguments(files, "--validation", 1.5), "validation must be a share"),
        (arguments(files, "--random", 0), "random must be"),
        (arguments(files, "--lm-eval-tasks", ","), "at least one lm-eval task"),
        (arguments(files, "--max-length", 3), "longer than the context of 3 tokens"),
        (arguments(files, "--position", "first"), "position must be whole numbers"),
    ]
    wrong = []
    for given, message in cases:
        done = run(*given)
        if done.returncode != 2 or message not in done.stderr or "Traceback" in done.stderr:
            wrong.append((message, done.returncode, done.stderr))
    assert not wrong


def test_a_report_that_cannot_be_written_costs_no_figure(files, tmp_path, monkeypatch):
    def full(*_):
        raise es.ArtifactError("report/evaluation.json cannot be written: No space left on device")

    monkeypatch.setattr("expertsteer.reporting.page.write_report", full)
    done = run(*arguments(files), "--report", tmp_path / "report", "--json")
    assert done.returncode == 2 and "No space left" in done.stderr
    assert json.loads(done.stdout)["comparison"]["rows"]


def test_layers_and_methods_choose_what_is_measured(files):
    more = ("--contrast", files / "contrast.jsonl", "--curves", "none", "--json")
    done = run(*arguments(files, *more, "--layers", "1", "--methods", "*mean*", "--random", 2))
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)["comparison"]
    names = [row["name"] for row in comparison["rows"] if row["kind"] in ("own", "given")]
    assert names == ["target's own mean difference", f"vectors {files / 'vectors'}"]
    assert {tuple(row["layers"]) for row in comparison["rows"] if row["layers"]} == {(1,)}
    wrong = run(*arguments(files, *more, "--methods", "*median*"))
    assert wrong.returncode == 2 and "'*median*'" in wrong.stderr
    assert "target's own mean difference" in wrong.stderr  # the way out
    wrong = run(*arguments(files, *more, "--layers", "5-7"))
    assert wrong.returncode == 2 and "--layers" in wrong.stderr and "(0, 1)" in wrong.stderr


def test_neutral_texts_come_with_the_package(files):
    given = [str(a) for a in arguments(files, "--curves", "none", "--json")]
    at = given.index("--neutral")
    done = run(*given[:at], *given[at + 2 :])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["neutral"]["texts"] == len(es.NEUTRAL_TEXTS)


def test_a_report_that_was_stopped_goes_on(files, tmp_path):
    more = ("--contrast", files / "contrast.jsonl", "--report", tmp_path / "out", "--json")
    first = run(*arguments(files, *more, "--max-minutes", 0))
    assert first.returncode == 0, first.stderr
    early = json.loads(first.stdout)["comparison"]
    assert early["skipped"]["target's own RFM"] == "was not begun within max_minutes=0"
    assert "evaluate:" not in first.stderr  # --json is quiet
    second = run(*arguments(files, *more))
    whole = json.loads(second.stdout)["comparison"]
    rows = {row["name"]: row for row in whole["rows"]}
    assert "target's own RFM" in rows and not set(whole["skipped"]) & set(rows)
    again = json.loads(run(*arguments(files, *more)).stdout)["comparison"]
    assert again["rows"] == whole["rows"]
