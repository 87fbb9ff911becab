"""Every family: the decoder is found, and a captured state is the output of its block."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.models.decoder import DecoderNotFoundError, find_decoder
from expertsteer.models.description import describe, hidden_size
from expertsteer.models.loading import load
from expertsteer.states.in_memory import capture
from helpers.families import FAMILIES, LAYERS, VOCABULARY, WIDTH, build_or_skip
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

LENGTHS = (3, 9, 1, 6, 12)
CONTRAST = ContrastSet.from_texts(
    [sentence(length, seed) for seed, length in enumerate(LENGTHS)], [0, 1, 0, 1, 1]
)

every_family = pytest.mark.parametrize("family", FAMILIES)
# Relative to the norm of a state: rounding accumulates over a few operations per layer.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def block_outputs(model, layers_path, text):
    """Every layer's output for one unpadded text, ``[L, T, D]``, through hooks of its own."""
    seen = {}

    def keep(index):
        def hook(module, args, output):
            seen[index] = output[0][0] if isinstance(output, tuple) else output[0]

        return hook

    layers = model.get_submodule(layers_path)
    handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack([seen[i] for i in range(len(layers))])


def assert_close(came, expected, dtype):
    error = (came.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1)
    assert error.max() < TOLERANCE[dtype], f"{error.max():.1e}"


@pytest.fixture
def family_model(family):
    return build_or_skip(family)


@every_family
def test_the_decoder_is_found(family, family_model):
    found = find_decoder(family_model)
    path = FAMILIES[family].layers_path
    assert found.layers_path == path and found.decoder_path == path.rpartition(".")[0]
    assert found.decoder is family_model.get_submodule(found.decoder_path)
    assert found.layers == tuple(family_model.get_submodule(path))
    assert find_decoder(family_model, path) == found
    assert len(found) == LAYERS and hidden_size(family_model) == WIDTH


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_batch_gives_the_block_outputs_of_each_text_alone(family, family_model, dtype):
    model = family_model.to(dtype)
    kept = {
        "last": lambda outputs: outputs[:, -1],
        "mean": lambda outputs: outputs.float().mean(dim=1),
        0: lambda outputs: outputs[:, 0],
        -2: lambda outputs: outputs[:, -2],
    }
    path = FAMILIES[family].layers_path
    alone = [block_outputs(model, path, text) for text in CONTRAST.texts]
    for position, of in kept.items():
        came = capture(model, tiny_tokenizer(), CONTRAST, position=position, batch_size=3)
        expected = torch.stack([of(outputs) for outputs in alone], dim=1)
        assert came.states.dtype == dtype and came.position == position
        assert_close(came.states, expected, dtype)


def test_a_model_whose_outer_part_makes_the_masks_is_read_as_it_runs():
    """Models of several modalities hand their decoder masks that are no longer by tokens."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = FAMILIES["gemma3_text"].options | {"vocab_size": VOCABULARY, "hidden_size": WIDTH}
    text |= {"num_hidden_layers": LAYERS, "layer_types": None, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0, **tokens
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    texts = [sentence(length, seed) for seed, length in enumerate(LENGTHS)]
    texts = [text.replace("w5", "w3") for text in texts]  # w56 to w58 stand for images
    contrast = ContrastSet.from_texts(texts, [0, 1, 0, 1, 1])
    path = find_decoder(model).layers_path
    alone = [block_outputs(model, path, text)[:, -1] for text in contrast.texts]
    came = capture(model, tiny_tokenizer(), contrast, batch_size=3)
    assert_close(came.states, torch.stack(alone, dim=1), torch.float32)


@every_family
def test_padding_side_and_batch_size_make_no_difference(family, family_model):
    right = capture(family_model, tiny_tokenizer("right"), CONTRAST)
    left = capture(family_model, tiny_tokenizer("left"), CONTRAST)
    single = capture(family_model, tiny_tokenizer("left"), CONTRAST, batch_size=1)
    assert torch.equal(left.states, right.states)
    assert_close(single.states, right.states, torch.float32)


@every_family
def test_states_are_those_before_the_final_norm(family, family_model):
    first = FAMILIES[family].first_entry
    if first is None:
        pytest.skip(f"{family}: output_hidden_states shows rescaled states, not block outputs")
    text = CONTRAST.texts[4]
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        entries = family_model(input_ids=ids, output_hidden_states=True).hidden_states
    states = capture(family_model, tiny_tokenizer(), CONTRAST).states[:, 4]
    outputs = torch.stack([entry[0, -1] for entry in entries[first : first + LAYERS - 1]])
    assert_close(states[:-1], outputs, torch.float32)
    assert (states[-1] - entries[-1][0, -1]).norm() > 0.1 * states[-1].norm()


# The search


class Blocks(nn.Module):
    """Lists of modules under given names, with a configuration that promises a depth."""

    def __init__(self, depth, **lists):
        super().__init__()
        self.config = type("Config", (), {"n_layer": depth})()
        for name, length in lists.items():
            inner = nn.Module()
            inner.blocks = nn.ModuleList([nn.Linear(2, 2) for _ in range(length)])
            self.add_module(name, inner)


def test_a_list_of_another_length_is_not_the_decoder():
    assert find_decoder(Blocks(3, text=3, heads=2)).layers_path == "text.blocks"


@pytest.mark.parametrize("lists", [{"text": 2, "heads": 4}, {"text": 3, "image": 3}, {}])
def test_without_exactly_one_candidate_the_error_lists_what_there_is(lists):
    with pytest.raises(DecoderNotFoundError) as caught:
        find_decoder(Blocks(3, **lists))
    message = str(caught.value)
    assert "layers=..." in message and "decoder_layers=..." in message
    for name, length in lists.items():
        assert f"{name}.blocks: {length} x Linear" in message
    assert find_decoder(Blocks(3, **lists, right=5), "right.blocks").decoder_path == "right"


def test_of_two_candidates_the_one_inside_the_models_decoder_is_taken():
    model = Blocks(3, text=3, image=3)
    model.get_decoder = lambda: model.text
    assert find_decoder(model).layers_path == "text.blocks"


def test_the_text_configuration_of_a_model_with_several_modalities_counts():
    model = Blocks(5, text=3, image=5)
    model.config.text_config = type("Config", (), {"num_hidden_layers": 3})()
    assert find_decoder(model).layers_path == "text.blocks"


def test_of_two_candidates_the_one_inside_the_language_model_is_taken():
    model = Blocks(3, text=3, image=3)
    model.config.text_config = type("TextConfig", (), {"num_hidden_layers": 3})()
    model.text.config = model.config.text_config
    assert find_decoder(model).layers_path == "text.blocks"
    model.get_decoder = lambda: None  # names none
    assert find_decoder(model).layers_path == "text.blocks"


@pytest.mark.parametrize("path", ["nowhere", "text", "text.blocks.0", "", 3])
def test_an_override_that_names_no_list_is_refused(path):
    with pytest.raises(DecoderNotFoundError, match="must be the dotted path"):
        find_decoder(Blocks(3, text=3), path)


def test_an_override_may_name_a_sequential_and_a_model_without_configuration():
    model = nn.Module()
    model.stack = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = find_decoder(model, "stack")
    assert found.decoder is model and len(found) == 2
    with pytest.raises(DecoderNotFoundError, match="lists of modules in this model: none"):
        find_decoder(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_a_compiled_model_is_searched_as_the_model_behind_it():
    model = build_or_skip("llama")
    compiled = torch.compile(model)
    assert find_decoder(compiled) == find_decoder(model)
    expected = capture(model, tiny_tokenizer(), CONTRAST)
    assert torch.equal(capture(compiled, tiny_tokenizer(), CONTRAST).states, expected.states)


def test_experts_listed_beside_the_layers_are_shown_once():
    with pytest.raises(DecoderNotFoundError) as caught:
        find_decoder(build_or_skip("mixtral"), "model.nothing")
    assert "model.layers: 3 x MixtralDecoderLayer" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 5


# Loading


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
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "False", ran.stderr


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
