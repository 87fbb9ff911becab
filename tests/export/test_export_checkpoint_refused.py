"""Checkpoints that cannot be steered for good, and writes that fail: nothing is left behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import expertsteer as es
from expertsteer.export import tensor_files
from expertsteer.export.checkpoint import export_checkpoint
from helpers.checkpoints import SHARDED, save
from helpers.exported_vectors import WRITTEN
from helpers.families import build_or_skip
from helpers.folded_models import vectors_for

pytestmark = pytest.mark.transformers


def test_a_tokenizer_that_would_change_is_an_error(tmp_path, monkeypatch):
    save(build_or_skip("qwen2"), tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="names no tokenizer_class.*cannot be loaded"):
        export_checkpoint(tmp_path / "base", vectors_for(build_or_skip("qwen2")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_strength_auto_needs_a_calibration(source, tmp_path):
    with pytest.raises(ValueError, match="hold no calibration"):
        export_checkpoint(source, WRITTEN, tmp_path / "out", strength="auto")


def edited(source, folder, **config):
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised .*then quantise the exp"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClass"),
        ({"model_type": "nobody"}, "makes no causal language model .*nobody"),
        ({"hidden_size": 64}, "has shape .* different models"),
        ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, "norm follows"),
    ],
)
def test_a_configuration_that_cannot_be_exported(change, message, source, tmp_path):
    folder = edited(source, tmp_path / "odd", **change)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(folder, WRITTEN, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd"]


def only_pickled(folder):
    for path in folder.glob("model*"):
        path.unlink()


def one_shard_less(folder):
    next(folder.glob("model-00002*")).unlink()


def a_shard_cut_short(folder):
    path = next(folder.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-40])


def no_header(folder):
    next(folder.glob("model-00002*")).write_bytes(b"\xff" * 200)


def bad_index(folder):
    (folder / SHARDED).write_text('{"weight_map": {"a": "../../b.safetensors"}}')


def no_config(folder):
    (folder / "config.json").unlink()


def torn_config(folder):
    (folder / "config.json").write_text("{")


def an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def renamed(folder):
    index = json.loads((folder / SHARDED).read_text())
    shard = index["weight_map"]["model.layers.1.mlp.down_proj.weight"]
    state = load_file(folder / shard)
    state["strange"] = state.pop("model.layers.1.mlp.down_proj.weight")
    save_file(state, folder / shard, metadata={"format": "pt"})


def in_bytes(folder):
    index = json.loads((folder / SHARDED).read_text())
    shard = index["weight_map"]["model.layers.1.mlp.down_proj.weight"]
    state = load_file(folder / shard)
    name = "model.layers.1.mlp.down_proj.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    save_file(state, folder / shard, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (only_pickled, r"only pickled weights \(pytorch_model.bin\).*save_pretrained"),
        (one_shard_less, "lacks model-00002"),
        (a_shard_cut_short, "model-00002.*truncated, damaged"),
        (no_header, "model-00002.*truncated, damaged"),
        (bad_index, "no readable weight_map"),
        (no_config, "holds no config.json"),
        (torn_config, "config.json: truncated, damaged"),
        (an_adapter, "is an adapter.*merge"),
        (renamed, "no tensor 'model.layers.1.mlp.down_proj.weight'.*save_pretrained"),
        (in_bytes, "quantised"),
    ],
)
def test_a_folder_that_cannot_be_exported(damage, message, source, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(source, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(folder, WRITTEN, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd"]


@pytest.mark.parametrize(
    "wrong, options, message",
    [
        (es.SteeringVectors({1: torch.ones(8)}), {}, "vectors have width 8"),
        (es.SteeringVectors({4: torch.ones(32)}), {}, "layer 4 is out of range"),
        (es.SteeringVectors({1: torch.zeros(32)}), {}, "all zero"),
        (es.SteeringVectors({1: torch.ones(32)}, {}, {"target": {"num_layers": 9}}), {}, "num_la"),
        (WRITTEN, {"strength": float("nan")}, "strength must be a finite number"),
        (WRITTEN, {"strength": 1e39}, "would not be finite in torch.float32"),
        ({1: torch.ones(32)}, {}, "vectors must be SteeringVectors, came dict"),
    ],
)
def test_bad_arguments_write_nothing(wrong, options, message, source, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(source, wrong, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(source, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export_checkpoint(source, WRITTEN, tmp_path)
    with pytest.raises(ValueError, match="no folder of that name, and it is no Hub id"):
        export_checkpoint(tmp_path / "nobody", WRITTEN, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    from expertsteer.export import checkpoint

    def fails(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "copy_others", fails)
    with pytest.raises(ValueError, match="cannot be written: no space left"):
        export_checkpoint(source, WRITTEN, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_returns_other_bytes_is_noticed(source, tmp_path, monkeypatch):
    from expertsteer.export import checkpoint

    def flips_a_bit(path, tensors, metadata):
        digests = tensor_files.write_tensors(path, tensors, metadata)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return digests

    monkeypatch.setattr(checkpoint, "write_tensors", flips_a_bit)
    with pytest.raises(ValueError, match="read back different"):
        export_checkpoint(source, WRITTEN, tmp_path / "out")
    assert not list(tmp_path.iterdir())
