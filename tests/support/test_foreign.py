"""What files and names of others may do here: run nothing, fill nothing, move no terminal."""

import io
import json
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import expertsteer as es
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.gguf import import_gguf
from expertsteer.export.npz import import_npz
from expertsteer.export.tensor_files import read_header
from expertsteer.models.loading import load
from expertsteer.support.console import SafeConsole
from expertsteer.support.text import markdown
from expertsteer.vectors.card import model_card
from helpers.artefacts import captured, vectors
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import build
from helpers.mutations import bounded
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

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


# Files that declare more than they hold


def test_a_gguf_that_declares_more_than_it_holds_is_refused_at_once(tmp_path):
    pytest.importorskip("gguf")
    path, head = tmp_path / "v.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    name = struct.pack("<Q", 1) + b"a"
    huge = 1 << 40
    contents = {
        "array": head + name + struct.pack("<IIQ", 9, 4, huge),
        "array of texts": head + name + struct.pack("<IIQ", 9, 8, huge),
        "arrays in arrays": head + name + struct.pack("<IIQ", 9, 9, huge),
        "text": head + name + struct.pack("<IQ", 8, huge),
        "fields": b"GGUF" + struct.pack("<IQQ", 3, 0, huge),
        "tensors": b"GGUF" + struct.pack("<IQQ", 3, huge, 0),
        "deep": head + name + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
    }
    for what, data in contents.items():
        path.write_bytes(data)
        with bounded(5), pytest.raises(es.ArtifactError, match="v.gguf: .*GGUF file"):
            import_gguf(path)
            pytest.fail(what)


def test_an_archive_that_unpacks_to_more_than_it_can_mean_is_refused_unread(tmp_path):
    path = tmp_path / "v.npz"
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 75 << 20)}
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("vectors.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with bounded(10, 100), pytest.raises(es.ArtifactError, match="unpacks to 314,.*fill the memor"):
        import_npz(path)


def test_an_array_that_asks_for_more_than_its_member_holds_is_refused(tmp_path):
    path, made = tmp_path / "v.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        made, {"descr": "<f8", "fortran_order": False, "shape": (1, 1 << 40)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", made.getvalue() + bytes(80))
        archive.writestr("layers.npy", b"")
    with (
        bounded(10, 100),
        pytest.raises(es.ArtifactError, match="v.npz: .*vectors.npy declares"),
    ):
        import_npz(path)


def test_an_archive_with_one_layer_twice_is_refused(tmp_path):
    np.savez(tmp_path / "v.npz", layers=[1, 1], vectors=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"v.npz: layers must be different, came \[1, 1\]"):
        import_npz(tmp_path / "v.npz")


def safetensors_with(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


@pytest.mark.parametrize(
    "ranges", [[(0, 8), (0, 8)], [(0, 8), (4, 12)], [(-8, 0), (0, 8)], [(0, 8), (16, 24)],
               [(0, 8), (8, 32)], [(8, 0), (8, 16)]], ids=str,
)  # fmt: skip
def test_ranges_that_overlap_or_leave_holes_are_not_made_good(ranges, tmp_path):
    path = tmp_path / "model.safetensors"
    header = {
        f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": list(r)}
        for i, r in enumerate(ranges)
    }
    safetensors_with(path, header, 24)
    with pytest.raises(es.ArtifactError, match="model.safetensors: .*safetensors file"):
        read_header(path)
    build("llama").save_pretrained(tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    first, second = (n for n in list(entries)[1:3])
    entries[first]["data_offsets"] = entries[second]["data_offsets"]
    safetensors_with(path, entries, len(data) - 8 - length)
    with pytest.raises(ValueError, match="model.safetensors"):
        export_checkpoint(tmp_path, es.SteeringVectors({1: torch.ones(32)}), tmp_path / "out")


# Terminals and pages

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07 [red]x[/] [/nothing] :smile: \x9b31m \u202egnp "
    "<script>a</script>\n# Head"
)


def hostile():
    about = {"name": HOSTILE, "architecture": HOSTILE, "num_layers": 3, "revision": "`" + HOSTILE}
    metadata = {"target": about, "expert": about, "method": HOSTILE, "position": HOSTILE}
    metadata["evaluation"] = [
        {"task": HOSTILE, "verdict": HOSTILE, "budget": 0.1, "measure": "kl", "rows": []}
    ]
    return es.SteeringVectors({1: torch.ones(4)}, metadata=metadata)


def test_names_say_nothing_to_a_terminal(tmp_path):
    folder = tmp_path / "[red]x[/] :smile: \x1b[2J"
    hostile().save_pretrained(folder)
    for arguments in (("inspect", folder), ("inspect", folder, "--json")):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout) & set("\x1b\x07\x9b\u202e")
        assert "[red]x[/]" in done.stdout.replace("\n", "") and "script" in done.stdout
    (tmp_path / "\x1b[2J.jsonl").write_text("{")
    options = ("--expert", "a", "--target", "b", "--out", tmp_path / "o")
    done = run("fit", "--contrast", tmp_path / "\x1b[2J.jsonl", *options)
    assert done.returncode == 2 and "\x1b" not in done.stderr and "[2J.jsonl" in done.stderr


def test_a_console_keeps_its_own_colours_and_shows_text_as_it_is():
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print("a\x1b[2Jb [bold]c[/bold] :smile:\td", style="red")
    shown = console.file.getvalue()
    assert "\x1b[31m" in shown and "\x1b[2J" not in shown and "[bold]c[/bold] :smile:" in shown


def test_a_card_holds_no_html_heading_or_fence_of_others():
    text = ModelCard(model_card(hostile().describe(), 'me/a"b\n```\n# x')).text
    outside = re.sub("`[^`\n]+`", "", text).replace("\\<", "")  # code shows what it holds
    assert "<script>" not in outside and "\x1b" not in text
    ours = [line for line in text.splitlines() if line.startswith("#")]
    assert len(ours) == 4 and text.count("```") == 2 + text.count("\\n```")
    assert markdown("a|b\n# c") == "a\\|b \\# c"


def test_metadata_of_another_kind_is_named_by_the_card():
    broken = es.SteeringVectors({1: torch.ones(2)}, metadata={"evaluation": [{"task": 1}]})
    with pytest.raises(es.ArtifactError, match="metadata: .*provenance .KeyError: 'verdict'"):
        model_card(broken.describe())


# Refused captures


def test_a_refused_capture_binds_nobody(tmp_path, monkeypatch):
    texts = [sentence(4, seed=i) for i in range(8)]
    contrast = es.ContrastSet.from_texts(texts, [i % 2 for i in range(8)])
    model, tokenizer = build("llama"), tiny_tokenizer()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 3000}))
        with pytest.raises(es.ArtifactError, match="fewer layers or a narrower dtype"):
            es.capture_to(tmp_path, model, tokenizer, contrast, progress=False)
        fewer = {"layers": [0], "dtype": "float16", "progress": False}
        assert es.capture_to(tmp_path, model, tokenizer, contrast, **fewer).layers == (0,)
    other = tmp_path / "other"
    with pytest.raises(ValueError, match="position 9 is out of range"):
        es.capture_to(other, model, tokenizer, contrast, position=9, progress=False)
    assert es.capture_to(other, model, tokenizer, contrast, progress=False).position == "last"


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    captured(tmp_path)
    path = tmp_path / "capture.json"
    path.write_text(path.read_text().replace('"name": "m"', '"name": "n"'))
    with pytest.raises(es.ArtifactError, match="capture.json was changed"):
        es.HiddenStates.open(tmp_path)
    assert vectors().width == 6
