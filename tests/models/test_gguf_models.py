"""GGUF files load as ordinary models: the same logits, saved and loaded again, named in errors."""

import importlib.util

import pytest
import torch

import expertsteer as es
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.models.loading import load
from helpers.tiny_gguf import tiny_qwen2, write_tiny_gguf

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(
        importlib.util.find_spec("gguf") is None, reason="the library gguf is not installed"
    ),
]
TEXT = "the this is the"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "tiny.gguf"
    write_tiny_gguf(tiny_qwen2(), path)
    return path


def logits(model, tokenizer):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits


def test_a_gguf_file_is_a_model_that_can_be_saved_and_loaded_again(file, tmp_path):
    model, tokenizer = load(file, device="cpu", dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu", dtype=torch.float32)
    assert torch.equal(logits(*again), logits(model, tokenizer))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert load(model)[1](TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]  # by its file's name


def test_vectors_of_a_gguf_model_name_the_file_and_steer_it(file):
    texts = [f"the {word} is" for word in ("this", "the", "is", "this is", "the is", "is the")] * 4
    contrast = es.ContrastSet.from_texts(texts, [1, 0] * 12)
    fitter = es.ExpertSteer(
        pairs=1, rule="lowest", null=None, neutral=None, health=False, progress=False
    )
    vectors = fitter.fit(str(file), str(file), contrast, device="cpu", dtype=torch.float32)
    assert vectors.metadata["target"]["name"].endswith("tiny.gguf")
    model, tokenizer = load(file, device="cpu", dtype=torch.float32)
    plain = logits(model, tokenizer)
    with es.attach(model, vectors, strength=1.0):
        assert not torch.allclose(logits(model, tokenizer), plain)


@pytest.mark.parametrize("name", ["none.gguf", "some/none.GGUF"])
def test_a_file_that_is_not_there_is_no_hub_id(name):
    with pytest.raises(ValueError, match=r"none\.(gguf|GGUF)' cannot be loaded: there is no file"):
        load(name, device="cpu")


def test_a_folder_may_be_called_like_a_file(file, tmp_path):
    model, tokenizer = load(file, device="cpu", dtype=torch.float32)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "folder.gguf")
    again = load(tmp_path / "folder.gguf", device="cpu", dtype=torch.float32)
    assert torch.equal(logits(*again), logits(model, tokenizer))


def test_what_is_no_gguf_file_is_refused_by_name(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("no weights")
    with pytest.raises(ValueError, match="text.gguf' cannot be loaded: transformers does not read"):
        load(path, device="cpu")


def test_a_revision_belongs_to_the_hub(file):
    with pytest.raises(ValueError, match="revision is of a repository"):
        load(file, device="cpu", revision="main")


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_missing_library_is_named_with_its_installation(file, monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != missing or None)
    with pytest.raises(ValueError, match=f"library {missing}, .*pip install"):
        load(file, device="cpu")


def test_a_checkpoint_is_exported_from_a_folder_not_from_a_gguf_file(file, tmp_path):
    vectors = es.SteeringVectors({1: torch.ones(32)})
    with pytest.raises(ValueError, match=r"tiny\.gguf' is a GGUF file.*save_pretrained"):
        export_checkpoint(file, vectors, tmp_path / "out")
