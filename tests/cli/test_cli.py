"""The command line as a user meets it, bad input included."""

import json
import subprocess
import sys

import pytest
import torch

import expertsteer as es
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import build
from helpers.tiny_tokenizer import sentence


def in_its_own_process(*arguments):
    command = [sys.executable, "-m", "expertsteer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two saved models, a contrast set and fitted vectors, all by the command line."""
    root = tmp_path_factory.mktemp("world")
    for name, family, size in (("expert", "gpt2", 24), ("target", "llama", 32)):
        save(build(family, width=size), root / name)
    rows = [
        {"text": sentence(4, seed=i) + (" w1" if i % 2 else " w2"), "label": i % 2}
        for i in range(48)
    ]
    (root / "contrast.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(*fit_arguments(root), "--pairs", 2, "--json")
    assert done.returncode == 0, done.stderr
    (root / "fit.json").write_text(done.stdout)
    return root


def fit_arguments(root, out="vectors"):
    return [
        *("fit", "--expert", root / "expert", "--target", root / "target", "--device", "cpu"),
        *("--contrast", root / "contrast.jsonl", "--out", root / out),
    ]


def test_fit_writes_vectors_and_says_so_in_json(world):
    document = json.loads((world / "fit.json").read_text())
    vectors = es.SteeringVectors.from_pretrained(world / "vectors")
    assert [row["layer"] for row in document["layers"]] == list(vectors.layers)
    assert document["width"] == 32 and document["metadata"]["method"] == "rfm"
    assert all(row["norm"] == pytest.approx(1, abs=1e-5) for row in document["layers"])
    assert vectors.calibration()["budget"] == 0.1  # by default, on the package's own texts


def test_fit_passes_its_options_on(world):
    done = run(
        *fit_arguments(world, out="other"),
        *("--pairs", 1, "--align", "ridge", "--direction", "mean_difference", "--rule", "random"),
        *("--position", "-1", "--null", 2, "--seed", 4),
        *("--estimator", "ksg", "--no-calibrate"),
    )
    assert done.returncode == 0, done.stderr
    meta = es.SteeringVectors.from_pretrained(world / "other").metadata
    assert meta["method"] == "mean_difference" and meta["alignment"]["method"] == "ridge"
    assert (
        "calibration" not in meta and meta["pairing"]["rule"] == "random" and meta["position"] == -1
    )
    pairing = es.LayerPairing.from_pretrained(world / "other")
    assert pairing.settings["estimator"] == "ksg" and pairing.floor is not None


def test_inspect_shows_layers_and_provenance(world):
    done = run("inspect", world / "vectors")
    assert done.returncode == 0
    for shown in (
        "expert",
        "validation",
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "effect (AUC): AUC of the target's states along the vector",
    ):
        assert shown in done.stdout
    same = json.loads(run("inspect", world / "vectors", "--json").stdout)
    assert same["layers"] == json.loads((world / "fit.json").read_text())["layers"]


def test_fit_checks_its_health_and_inspect_shows_it_again(world):
    document = json.loads((world / "fit.json").read_text())["metadata"]["health"]
    assert document["examples"] == 48 and len(document["pairs"]) == 2
    assert document["ok"] is (document["warnings"] == [])
    few = world / "few.jsonl"
    few.write_text("\n".join((world / "contrast.jsonl").read_text().splitlines()[:12]))
    done = run(*fit_arguments(world, out="few"), "--contrast", few, "--pairs", 1, "--null", 0)
    assert done.returncode == 0, done.stderr
    told = "warning: 12 examples, 6 of the rarer label, are too few"
    assert told in done.stdout and "wanted" in done.stdout
    assert "few" not in done.stderr and "Warning" not in done.stderr  # the table has said it
    machine = [*fit_arguments(world, out="few"), "--contrast", few, "--pairs", 1, "--null", 0]
    as_json = run(*machine, "--json")
    assert told in as_json.stderr and "UserWarning" not in as_json.stderr
    assert json.loads(as_json.stdout)["metadata"]["health"]["ok"] is False
    again = run("inspect", world / "few").stdout
    assert done.stdout[done.stdout.index("health:") :] == again[again.index("health:") :]
    done = run(*fit_arguments(world, out="unchecked"), "--pairs", 1, "--no-health")
    assert done.returncode == 0 and "health:" not in done.stdout
    assert "health" not in es.SteeringVectors.from_pretrained(world / "unchecked").metadata


def test_inspect_shows_the_layer_pairs_and_draws_them(world, tmp_path):
    pytest.importorskip("matplotlib")
    done = run("inspect", world / "vectors", "--plot", tmp_path / "pairs.png")
    assert done.returncode == 0, done.stderr
    pairing = es.LayerPairing.from_pretrained(world / "vectors")
    assert pairing.matrix.shape == (3, 3) and len(pairing) == 2
    assert "target layer" in done.stdout and done.stdout.count("[") >= 2
    assert f"[{pairing.pairs[0].nats:.2f}]" in done.stdout
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    pairing.save_pretrained(tmp_path / "alone")
    alone = run("inspect", tmp_path / "alone")
    assert alone.returncode == 0 and "rule 'effect'" in alone.stdout
    es.SteeringVectors({0: torch.ones(3)}).save_pretrained(tmp_path / "bare")
    refused = run("inspect", tmp_path / "bare", "--plot", tmp_path / "no.png")
    assert refused.returncode == 2 and "no matrix of layer pairs" in refused.stderr


def test_generate_shows_both_texts_and_strength_zero_agrees(world):
    base = ["generate", "--model", world / "target", "--vectors", world / "vectors"]
    base += ["--device", "cpu", "--max-new-tokens", 6, "--prompt", "w3 w4"]
    document = json.loads(run(*base, "--strength", 3, "--json").stdout)
    assert document["prompt"] == "w3 w4" and document["steered"] != document["unsteered"]
    idle = json.loads(run(*base, "--strength", 0, "--positions", "generated", "--json").stdout)
    assert idle["steered"] == idle["unsteered"] == document["unsteered"]
    named = run(*base, "--strength", 3, "--decoder-layers", "model.layers", "--json")
    assert json.loads(named.stdout) == document
    piped = run(*base[:-2], "--strength", 3, stdin="w3 w4\n")
    assert piped.returncode == 0, piped.stderr
    assert document["steered"] in piped.stdout and "unsteered" in piped.stdout


def test_fit_calibrates_and_generate_uses_it(world):
    (world / "neutral.txt").write_text("\n".join(sentence(9, seed=i) for i in range(5)) + "\n\n")
    more = ("--pairs", 2, "--neutral", world / "neutral.txt", "--budget", 0.05)
    done = run(*fit_arguments(world, out="calibrated"), *more)
    assert done.returncode == 0, done.stderr
    (found,) = es.SteeringVectors.from_pretrained(world / "calibrated").metadata["calibration"]
    assert found["divergence"] <= found["budget"] == 0.05 and found["texts"] == 5
    base = ["generate", "--model", world / "target", "--vectors", world / "calibrated"]
    base += ["--device", "cpu", "--max-new-tokens", 6, "--prompt", "w3 w4", "--json"]
    document = json.loads(run(*base, "--strength", "auto").stdout)
    assert document["strength"] == found["strength"]
    named = json.loads(run(*base, "--strength", found["strength"]).stdout)
    assert named["steered"] == document["steered"]


def test_the_module_runs_as_a_program(tmp_path):
    done = in_its_own_process("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("demo", "fit", "generate", "inspect"))
    refused = in_its_own_process("inspect", tmp_path)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr


def test_bad_input_is_one_message_and_code_2(world, tmp_path):
    empty, broken, one_class = (tmp_path / f"{n}.jsonl" for n in ("empty", "broken", "one"))
    empty.write_text("")
    broken.write_text('{"text": "w1", "label": 1}\n{"text": "w1"}\nnonsense\n')
    one_class.write_text('{"text": "w1", "label": 1}\n' * 20)
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "w1", "label": 1}\n{"text": "w2", "label": 0}\n')
    narrow = tmp_path / "narrow"
    es.SteeringVectors({1: torch.ones(7)}).save_pretrained(narrow)
    torn = tmp_path / "torn"
    es.SteeringVectors({1: torch.ones(32)}).save_pretrained(torn)
    (torn / "steering_vectors.safetensors").write_bytes(b"\x00")
    deep = tmp_path / "deep"
    es.SteeringVectors({11: torch.ones(32)}).save_pretrained(deep)

    foreign = tmp_path / "foreign"
    of_another = es.SteeringVectors({1: torch.ones(32)}, metadata={"target": {"num_layers": 99}})
    of_another.save_pretrained(foreign)
    odd = tmp_path / "odd"
    es.SteeringVectors({1: torch.ones(32)}, metadata={"pairing": "lowest"}).save_pretrained(odd)

    def fit(contrast, *more):
        return [*fit_arguments(world, out=tmp_path / "never"), "--contrast", contrast, *more]

    def generate(vectors, *more):
        where = ["--vectors", vectors, "--device", "cpu", "--prompt", "w1"]
        return ["generate", "--model", world / "target", *where, *more]

    whole = world / "contrast.jsonl"
    cases = [
        (fit(tmp_path / "missing.jsonl"), "missing.jsonl"),
        (fit(empty), "empty.jsonl"),
        (fit(broken), "line 3"),
        (fit(one_class), "label"),
        (fit(few), "examples"),
        (fit(whole, "--pairs", 9), "number of target layers"),
        (fit(whole, "--expert", tmp_path / "nothing"), "nothing"),
        (fit(whole, "--position", "first"), "position must be whole numbers"),
        (fit(whole, "--dtype", "float7"), "float7"),
        (fit(whole, "--device", "quantum"), "quantum"),
        (fit(whole, "--bandwidth", -1), "bandwidth must be positive"),
        (fit(whole, "--rule", "best"), "best"),
        (generate(tmp_path / "nobody"), "neither a folder"),
        (generate(narrow), "width 7"),
        (generate(torn), "truncated"),
        (generate(deep), "layer 11 is out of range"),
        (generate(foreign), "fitted for a model with num_layers 99"),
        (generate(world / "vectors", "--decoder-layers", "model.blocks"), "model.blocks"),
        (generate(world / "vectors", "--layers", "9"), "layers [9] carry no vector"),
        (generate(world / "vectors", "--max-new-tokens", 0), "max_new_tokens"),
        (generate(world / "vectors", "--temperature", -1), "temperature"),
        (generate(world / "vectors", "--temperature", "nan"), "temperature"),
        (generate(world / "vectors", "--seed", -1), "--seed"),
        (generate(world / "vectors", "--layers", 1, "--strength", "auto"), "no stored calibration"),
        (fit(whole, "--neutral", whole, "--no-calibrate"), "--no-calibrate"),
        (generate(world / "vectors", "--strength", "much"), "came 'much'"),
        (fit(whole, "--neutral", empty), "holds no text"),
        (fit(whole, "--neutral", whole.parent), "neutral must name a text file"),
        (fit(whole, "--neutral", whole.parent / "none"), "neutral must name a text file"),
        (fit(whole, "--out", whole), "contrast.jsonl"),
        (["inspect", tmp_path], "holds no steering_vectors"),
        (["inspect", odd], f"{odd}: metadata"),
        (["inspect", odd, "--json"], f"{odd}: metadata"),
    ]
    wrong = []
    for arguments, message in cases:
        done = run(*arguments)
        readable = message in done.stderr and "Traceback" not in done.stderr
        if done.returncode != 2 or not readable:
            wrong.append((message, done.returncode, done.stderr))
    assert not wrong
    assert not list(tmp_path.glob("never/*"))
    assert run(*generate(foreign, "--no-check-model")).returncode == 0
