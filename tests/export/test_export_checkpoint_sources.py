"""Checkpoints as people have them: older names, files beside shards, tied weights, the Hub."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from expertsteer.export.checkpoint import export_checkpoint
from helpers.checkpoints import SHARDED, load, save, saved
from helpers.exported_vectors import IDS, WRITTEN
from helpers.families import build_or_skip
from helpers.folded_models import build_case, hooked_logits, relative_error, vectors_for
from helpers.steered_models import llama, logits

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_weights_without_the_outermost_prefix_are_found(name, tmp_path):
    # As many of the older checkpoints on the Hub are.
    model = build_or_skip(name)
    saved(model, tmp_path / "base", "5GB")
    path = tmp_path / "base" / "model.safetensors"
    prefix = model.base_model_prefix + "."
    state = {n.removeprefix(prefix): t for n, t in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    try:
        base = load(tmp_path / "base")
    except ValueError as refused:
        pytest.skip(f"{name} does not load so in this transformers: {refused}")
    vectors = vectors_for(model)
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stream:
        assert not any(n.startswith(prefix) for n in stream.keys())  # noqa: SIM118
    expected = hooked_logits(base, vectors, IDS)
    assert relative_error(logits(load(tmp_path / "out"), IDS), expected) < 1e-5


def test_a_single_file_goes_before_shards_beside_it(source, tmp_path):
    shutil.copytree(source, tmp_path / "both")
    other = llama(seed=3)
    other.save_pretrained(tmp_path / "both")
    for name in (SHARDED, "model-00001-of-00005.safetensors"):
        shutil.copy(next(source.glob(name.replace("00005", "*"))), tmp_path / "both" / name)
    expected = load(tmp_path / "both")  # what transformers takes
    assert torch.equal(logits(expected, IDS), logits(other, IDS))
    made = export_checkpoint(tmp_path / "both", WRITTEN, tmp_path / "out")
    assert made.shards == ("model.safetensors",) and not (tmp_path / "out" / SHARDED).exists()
    assert any(name.startswith("model-00001") for name in made.left_out)
    expected = hooked_logits(other, WRITTEN, IDS)
    assert relative_error(logits(load(tmp_path / "out"), IDS), expected) < 1e-5


@pytest.mark.parametrize("both", [False, True], ids=["embedding alone", "both stored"])
@pytest.mark.parametrize("case", ["llama tied", "qwen2 tied"])
def test_tied_embeddings_stay_tied(case, both, monkeypatch, tmp_path):
    model = build_case(monkeypatch, case)
    saved(model, tmp_path / "base", "5GB")
    path = tmp_path / "base" / "model.safetensors"
    state = load_file(path)
    assert "lm_head.weight" not in state
    if both:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        save_file(state, path, metadata={"format": "pt"})
    vectors = vectors_for(model)
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    made = load(tmp_path / "out")
    assert made.lm_head.weight is made.get_input_embeddings().weight
    assert relative_error(logits(made, IDS), hooked_logits(model, vectors, IDS)) < 1e-5


@pytest.mark.parametrize("named", [False, True], ids=["no class named", "class named"])
def test_a_converted_model_keeps_its_tokenizer(named, tmp_path):
    save(build_or_skip("qwen2"), tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if not named:
        settings.pop("tokenizer_class", None)
        path.write_text(json.dumps(settings))
    export_checkpoint(tmp_path / "base", vectors_for(build_or_skip("qwen2")), tmp_path / "out")
    old, new = (AutoTokenizer.from_pretrained(tmp_path / f) for f in ("base", "out"))
    assert type(new) is type(old)
    text = "w1 w2 w3, w4"
    assert new(text).input_ids == old(text).input_ids


def test_a_hub_id_is_downloaded(source, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    export = export_checkpoint("owner/model", WRITTEN, tmp_path / "out", revision="v1")
    assert (asked["repo_id"], asked["revision"]) == ("owner/model", "v1")
    assert "*.bin" in asked["ignore_patterns"] and "*.safetensors" not in asked["ignore_patterns"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: owner/model" in card and "`v1`" in card
    assert export.base_model == "owner/model"
