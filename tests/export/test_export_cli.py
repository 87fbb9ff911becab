"""Exports on the command line: what is written, what is said about it, and bad input."""

import json
import os
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM

import expertsteer as es
from expertsteer.export.npz import import_npz
from helpers.checkpoints import save
from helpers.command import run
from helpers.folded_models import relative_error
from helpers.steered_models import llama, logits, tokens, vectors

STRENGTH = 0.6
LLAMA = {"architecture": "LlamaForCausalLM", "num_layers": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, vectors for it without layer 0, and some with."""
    root = tmp_path_factory.mktemp("world")
    save(llama(), root / "model")
    vectors(layers=(1, 3), target=LLAMA).save_pretrained(root / "vectors")
    vectors(layers=(0, 2)).save_pretrained(root / "first")
    return root


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def export(world, out, *options, of="vectors"):
    return run("export", world / of, "--out", out, *options)


def said(done):
    """The three lines that every export prints."""
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["wrote", "checked", "use"]
    return lines


def test_a_checkpoint_that_is_steered_by_itself(world, tmp_path):
    out = tmp_path / "steered"
    done = export(
        world, out, "--format", "checkpoint", "--model", world / "model", "--strength", STRENGTH
    )
    lines = said(done)
    assert "strength 0.6" in lines["wrote"] and "12 of 51 tensors new" in lines["wrote"]
    assert str(out) in lines["use"]
    made, ids = AutoModelForCausalLM.from_pretrained(out).eval(), tokens()
    chosen = es.SteeringVectors.from_pretrained(world / "vectors")
    model = llama()
    with es.attach(model, chosen, strength=STRENGTH):
        assert relative_error(logits(made, ids), logits(model, ids)) < 1e-5


@pytest.mark.parametrize("format", ["checkpoint", "npz", "sglang", "lm-eval"])
def test_what_is_told_is_a_path_for_programs_that_know_no_tilde(world, home, format):
    name = {"npz": "made.npz", "lm-eval": "made.pt"}.get(format, "made")
    (home / "model").symlink_to(world / "model")
    model = () if format == "npz" else ("--model", "~/model", "--strength", STRENGTH)
    lines = said(export(world, f"~/{name}", "--format", format, *model))
    assert (home / name).exists()
    assert str(home / name) in lines["use"] and "~" not in lines["wrote"] + lines["use"]


def test_a_control_vector_out_and_in(world, tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "made.gguf"
    lines = said(export(world, file, "--format", "gguf", "--model", world / "model"))
    assert "1 x scale x vector" in lines["wrote"]
    assert "--control-vector" in lines["use"] and str(file) in lines["use"]
    done = run("import", file, "--out", tmp_path / "back", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["layer"] for row in json.loads(done.stdout)["layers"]] == [1, 3]
    before, after = (es.SteeringVectors.from_pretrained(p) for p in
                     (world / "vectors", tmp_path / "back"))  # fmt: skip
    for i in before.layers:
        torch.testing.assert_close(before.displacement(i), after.displacement(i))


def test_layer_0_goes_to_repeng_but_not_to_llama_cpp(world, tmp_path):
    pytest.importorskip("gguf")
    refused = export(world, tmp_path / "a.gguf", "--format", "gguf", of="first")
    assert refused.returncode == 2 and "layer 0" in refused.stderr
    chosen = export(world, tmp_path / "a.gguf", "--format", "gguf", "--layers", 2, of="first")
    assert "1 direction(s)" in said(chosen)["wrote"]
    lines = said(export(world, tmp_path / "b.gguf", "--format", "repeng-gguf", of="first"))
    assert "ControlModel(model, [0, 2])" in lines["use"]


def test_an_archive_out_and_in(world, tmp_path):
    lines = said(export(world, tmp_path / "a.npz", "--format", "npz"))
    assert "bit for bit" in lines["checked"]
    assert run("import", tmp_path / "a.npz", "--out", tmp_path / "back").returncode == 0
    before, after = (es.SteeringVectors.from_pretrained(p) for p in
                     (world / "vectors", tmp_path / "back"))  # fmt: skip
    assert before.fingerprint == after.fingerprint == import_npz(tmp_path / "a.npz").fingerprint


def test_hooks_for_sglang_find_the_layers_of_the_model(world, tmp_path):
    out = tmp_path / "hooks"
    lines = said(
        export(world, out, "--format", "sglang", "--strength", 1, "--model", world / "model")
    )
    assert "model.layers.{1,3}" in lines["wrote"]
    # The line is one that a shell takes apart as meant.
    command = lines["use"].replace("python -m sglang.launch_server", "printf '%s\\n'")
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    arguments = shown.stdout.split("--forward-hooks\n")
    assert json.loads(arguments[1]) == json.loads((out / "hooks.json").read_text())


def test_a_file_for_lm_eval(world, tmp_path):
    pytest.importorskip("expertsteer.export.lm_eval")
    options = ("--format", "lm-eval", "--strength", 0.5, "--model", world / "model")
    lines = said(export(world, tmp_path / "a.pt", *options))
    assert "steer_path=" in lines["use"]
    written = torch.load(tmp_path / "a.pt", weights_only=True)
    assert [name.split(".")[-1] for name in written] == ["1", "3"]


def test_the_strength_is_the_calibrated_one_where_there_is_one(world, tmp_path):
    found = vectors(layers=(1, 3))
    stored = {
        "fingerprint": found.fingerprint,
        "operation": "add",
        "layers": [1, 3],
        "strength": 0.37,
    }
    es.SteeringVectors(found.vectors, found.scales, {"calibration": [stored]}).save_pretrained(
        tmp_path / "vectors"
    )
    for options in ((), ("--strength", "auto")):
        out = tmp_path / f"hooks{len(options)}"
        done = run("export", tmp_path / "vectors", "--format", "sglang", "--out", out, *options)
        assert "strength 0.37" in said(done)["wrote"]
        entries = json.loads((out / "hooks.json").read_text())
        assert {entry["config"]["strength"] for entry in entries} == {0.37}


def test_json_says_the_same(world, tmp_path):
    done = export(world, tmp_path / "a.npz", "--format", "npz", "--json")
    document = json.loads(done.stdout)
    assert set(document) == {"out", "format", "layers", "strength", "content", "checked", "use"}
    assert document["layers"] == [1, 3] and document["strength"] is None


def test_bad_input_is_one_readable_line(world, tmp_path):
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    (tmp_path / "torn.npz").write_bytes(b"PK")
    (tmp_path / "text.txt").write_text("")
    out, model = tmp_path / "out", ("--model", world / "model")
    checkpoint, sglang = ("--format", "checkpoint"), ("--format", "sglang", "--strength", 1)
    strong = ("--strength", 1)
    cases = [
        (export(world, out), "--format"),
        (export(world, out, "--format", "onnx"), "onnx"),
        (export(world, out, *checkpoint, *strong), "model must be given for checkpoint"),
        (export(world, out, *checkpoint, *model), "strength must be given for checkpoint"),
        (export(world, out, *checkpoint, *model, "--strength", "much"), "came 'much'"),
        (export(world, out, *checkpoint, *model, "--strength", "auto"), "hold no calibration"),
        (export(world, out, *checkpoint, *strong, "--model", tmp_path), "holds no config.json"),
        (export(world, world / "model", *checkpoint, *strong, *model), "exists already"),
        (export(world, out, "--format", "npz", *strong), "no place in npz"),
        (export(world, out, "--format", "npz"), "must end in .npz"),
        (export(world, out, *sglang, "--model", tmp_path / "x"), "no causal language model"),
        (export(world, out, *sglang, "--decoder-layers", "model.*"), "dotted name"),
        (export(world, out, *sglang, "--layers", 7), "layers [7] carry no vector"),
        (export(world, out, *sglang, of="nobody"), "neither a folder"),
        (run("import", tmp_path / "torn.npz", "--out", out), "torn.npz: truncated, damaged"),
        (run("import", tmp_path / "text.txt", "--out", out), "must end in .gguf or .npz"),
        (run("import", tmp_path / "nobody.npz", "--out", out), "is no file"),
    ]
    wrong = []
    for done, message in cases:
        readable = message in done.stderr and "Traceback" not in done.stderr
        if done.returncode != 2 or not readable:
            wrong.append((message, done.returncode, done.stderr))
    assert not wrong
    assert not out.exists()


def test_vectors_of_another_model_are_refused(world, tmp_path):
    other = vectors(layers=(1,), target=LLAMA | {"num_layers": 9})
    other.save_pretrained(tmp_path / "other")
    arguments = ["export", tmp_path / "other", "--format", "sglang", "--strength", 1]
    arguments += ["--model", world / "model", "--out", tmp_path / "out"]
    refused = run(*arguments)
    assert refused.returncode == 2 and "num_layers 9" in refused.stderr
    assert run(*arguments, "--no-check-model").returncode == 0


def test_a_torn_control_vector_is_one_readable_line(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    done = run("import", tmp_path / "torn.gguf", "--out", tmp_path / "out")
    assert done.returncode == 2 and "torn.gguf: truncated, damaged" in done.stderr
