"""Bars keep quiet when told so: by an argument, by the environment, by ``--json``."""

import json
import sys
from pathlib import Path

import pytest

import expertsteer as es
from expertsteer.cli import app
from expertsteer.support import progress as module
from helpers.checkpoints import save
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

PACKAGE = Path(es.__file__).parent


@pytest.fixture
def made(monkeypatch):
    """Whether each bar that was made from now on is shown, by its description."""
    seen = []

    class Recorded(module.tqdm):
        def __init__(self, *arguments, desc="", disable=False, **options):
            seen.append((desc, not disable))
            super().__init__(*arguments, desc=desc, disable=True, **options)

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(module, "tqdm", Recorded)
    return seen


@pytest.fixture(scope="module")
def contrast():
    texts = [sentence(4, seed=i) + (" w1" if i % 2 else " w2") for i in range(40)]
    return es.ContrastSet.from_texts(texts, [i % 2 for i in range(40)])


def fitted(contrast, **settings):
    models = build("gpt2", layers=2), build("llama", layers=2)
    tokenizers = {f"{side}_tokenizer": tiny_tokenizer() for side in ("expert", "target")}
    return es.ExpertSteer(**settings).fit(*models, contrast, **tokenizers)


def test_a_fit_shows_bars_unless_told_not_to(contrast, made, monkeypatch):
    fitted(contrast)
    assert {name for name, visible in made if visible} >= {"capture", "align", "health"}
    made.clear()
    fitted(contrast, progress=False)
    assert made and not any(visible for _, visible in made)
    made.clear()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    fitted(contrast)
    assert made and not any(visible for _, visible in made)


def test_the_argument_reaches_what_has_no_such_argument(contrast, made):
    states = [
        es.capture(build(family, layers=2), tiny_tokenizer(), contrast, progress=False)
        for family in ("gpt2", "llama")
    ]
    with module.bars(False):
        information = es.mutual_information(*states, null=4)
        es.pair_layers(information, 1, "validated", effect=lambda e, t: 0.0)
        es.align(*states)
        with module.bars(True):  # what is around it has the last word
            es.align(*states)
    assert made and not any(visible for _, visible in made)


def test_json_means_quiet_and_loading_too(contrast, made, tmp_path, monkeypatch, capsys):
    for name, family in (("expert", "gpt2"), ("target", "llama")):
        save(build(family, layers=2), tmp_path / name)
    rows = [{"text": e.text, "label": e.label} for e in contrast]
    (tmp_path / "contrast.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit = ["fit", "--device", "cpu", "--contrast", str(tmp_path / "contrast.jsonl"), "--null", "0"]
    fit += [w for s in ("expert", "target") for w in (f"--{s}", str(tmp_path / s))]
    for number, (before, after) in enumerate((([], ["--json"]), (["--no-progress"], []))):
        made.clear()
        monkeypatch.setattr(sys, "argv", ["expertsteer"])
        app([*before, *fit, "--out", str(tmp_path / f"out{number}"), *after], standalone_mode=False)
        assert made and not any(visible for _, visible in made)
        assert "Loading weights" not in capsys.readouterr().err


def test_every_bar_is_made_in_one_place():
    others = [f for f in PACKAGE.rglob("*.py") if f.name != "progress.py"]
    assert not [f.name for f in others if "import tqdm" in f.read_text("utf-8")]
