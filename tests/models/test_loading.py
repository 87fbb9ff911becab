"""Models and tokenizers from folders and names: loaded as they were stored, or refused."""

from __future__ import annotations

import pytest
import torch

from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.models.description import describe
from expertsteer.models.loading import load
from expertsteer.states.in_memory import capture
from helpers.command import python
from helpers.families import LAYERS, VOCABULARY, WIDTH, build_or_skip
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    build_or_skip("llama", dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer(chat=True).save_pretrained(folder)
    return folder


def test_a_folder_loads_in_the_type_it_was_stored_in(checkpoint):
    model, tokenizer = load(str(checkpoint), device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    assert tokenizer("w1")["input_ids"] == tiny_tokenizer()("w1")["input_ids"]
    assert describe(model) == {
        "name": str(checkpoint),
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "num_layers": LAYERS,
        "hidden_size": WIDTH,
        "dtype": "bfloat16",
    }
    assert load(checkpoint, device="cpu", dtype=torch.float32)[0].dtype == torch.float32
    assert load(checkpoint, device="cpu", dtype="float32")[0].dtype == torch.float32


def test_a_model_at_hand_comes_back_as_it_is(checkpoint):
    model, tokenizer = load(checkpoint, device="cpu")
    assert load(model, tokenizer) == (model, tokenizer)
    assert len(load(model)[1]) == VOCABULARY
    assert len(load(model, str(checkpoint))[1]) == VOCABULARY
    with pytest.raises(ValueError, match="tokenizer must be given"):
        load(build_or_skip("gpt2"))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such/folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match="there is no folder of that name") as caught:
        load(name, device="cpu")
    assert repr(name) in str(caught.value)


def test_an_unknown_hub_id_is_one_clear_error():
    with pytest.raises(ValueError, match="'nobody/nothing' cannot be loaded: no usable one on"):
        load("nobody/nothing", device="cpu")


def test_a_damaged_checkpoint_is_one_clear_error(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:1000] if "safetensors" in file.name else data)
    with pytest.raises(ValueError, match="model .* cannot be loaded: no usable one in that folder"):
        load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
        ({"dtype": "int8"}, "dtype must be None"),
        ({"dtype": torch.int64}, "dtype must be None"),
        ({"tokenizer": "./nowhere"}, "tokenizer './nowhere' cannot be loaded"),
    ],
)
def test_options_that_cannot_be_met_are_refused(checkpoint, options, reason):
    with pytest.raises(ValueError, match=reason):
        load(checkpoint, **{"device": "cpu"} | options)
    with pytest.raises(ValueError, match="model must be|tokenizer must be"):
        load(3, device="cpu")


def test_transformers_is_not_imported_before_a_model_is_loaded():
    code = "import sys, expertsteer, expertsteer.models; print('transformers' in sys.modules)"
    assert python("-c", code).strip() == "False"


def test_a_pretrained_model_predicts_from_the_captured_state(stories):
    from transformers import PreTrainedTokenizerFast

    # The file, since releases before 5 do not know the class its configuration names.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(stories / "tokenizer.json"))
    model, tokenizer = load(stories, tokenizer, device="cpu")
    texts = ["Once upon a time, there was a little", "Tom and Lily like to play with the big red"]
    contrast = ContrastSet.from_texts(texts, [0, 1])
    states = capture(model, tokenizer, contrast).states
    assert states.shape == (5, 2, 64)
    for i, text in enumerate(texts):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
            came = model.lm_head(model.model.norm(states[-1, i]))
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-4)
