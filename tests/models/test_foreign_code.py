"""Code that a model folder of a stranger brings along: it runs where it is asked for."""

import json

import pytest
import torch

import expertsteer as es
from expertsteer.models.loading import load
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import build
from helpers.tiny_tokenizer import sentence

pytestmark = pytest.mark.transformers

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM

pathlib.Path({marker!r}).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "own_model_of_a_stranger"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A model folder that needs its own code, and the file that the code makes when it runs."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder, marker = tmp_path / "stranger", tmp_path / "ran"
    save(build("llama"), folder)
    (folder / "own_code.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_model_of_a_stranger", "architectures": ["OwnModel"]}
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, marker


def test_no_code_of_a_repository_runs_unless_it_is_asked_for(stranger):
    folder, marker = stranger
    with pytest.raises(ValueError, match="Python code of its own.*pass trust_remote_code=True"):
        load(folder)
    assert not marker.exists()
    with pytest.raises(ValueError, match="trust_remote_code must be True or False, came 'yes'"):
        load(folder, trust_remote_code="yes")
    model, _ = load(folder, trust_remote_code=True, device="cpu")
    assert marker.exists() and type(model).__name__ == "OwnModel"


def test_a_fit_passes_the_option_on(stranger):
    folder, marker = stranger
    texts = [sentence(4, seed=i) for i in range(24)]
    contrast = es.ContrastSet.from_texts(texts, [i % 2 for i in range(24)])
    fitter = es.ExpertSteer(pairs=1, null=None, health=False, progress=False)
    with pytest.raises(ValueError, match="pass trust_remote_code=True"):
        fitter.fit(str(folder), str(folder), contrast, device="cpu")
    assert not marker.exists()
    one_side = {"expert_options": {"trust_remote_code": True}}
    with pytest.raises(ValueError, match="pass trust_remote_code=True"):
        fitter.fit(str(folder), str(folder), contrast, device="cpu", **one_side)
    fitted = fitter.fit(str(folder), str(folder), contrast, device="cpu", trust_remote_code=True)
    assert fitted.metadata["target"]["architecture"] == "OwnModel"


def test_every_command_that_loads_a_model_has_the_option(stranger, tmp_path):
    folder, marker = stranger
    contrast, task = tmp_path / "c.jsonl", tmp_path / "t.jsonl"
    rows = [{"text": sentence(4, seed=i), "label": i % 2} for i in range(8)]
    contrast.write_text("\n".join(map(json.dumps, rows)))
    items = [{"question": "w1", "choices": ["w2", "w3"], "answer": "w2"}] * 8
    task.write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "n.txt").write_text("w1 w2 w3\nw4 w5 w6\n")
    es.SteeringVectors({1: torch.ones(32)}).save_pretrained(tmp_path / "v")
    out, cpu = ("--out", tmp_path / "out"), ("--device", "cpu")
    evaluated = ("--task", task, "--neutral", tmp_path / "n.txt", "--vectors", tmp_path / "v")
    exported = (tmp_path / "v", "--model", folder, "--strength", 1, "--format")
    commands = {
        "capture": ("capture", "--model", folder, "--contrast", contrast, *out, *cpu),
        "fit": ("fit", "--expert", folder, "--target", folder, "--contrast", contrast, *out),
        "generate": ("generate", "--model", folder, "--vectors", tmp_path / "v", "--prompt", "w1"),
        "evaluate": ("evaluate", "--target", folder, *evaluated, *cpu),
        "bench": ("bench", "--model", folder, *cpu, "--tokens", 1),
        "sglang": ("export", *exported, "sglang", "--out", tmp_path / "s"),
        "lm-eval": ("export", *exported, "lm-eval", "--out", tmp_path / "v.pt"),
        "checkpoint": ("export", *exported, "checkpoint", "--out", tmp_path / "k"),
    }
    for name, command in commands.items():
        done = run(*command)
        assert done.returncode == 2, name
        named = "--trust-remote-code" in done.stderr or name == "checkpoint"
        assert named and "Traceback" not in done.stderr, f"{name}: {done.stderr}"
    assert not marker.exists()
    for name in ("capture", "generate", "sglang"):
        done = run(*commands[name], "--trust-remote-code")
        assert done.returncode == 0, f"{name}: {done.stderr}"
    assert marker.exists()
    done = run(*commands["checkpoint"], "--trust-remote-code")
    assert done.returncode == 2 and "leave --trust-remote-code out" in done.stderr
