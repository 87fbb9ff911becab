"""The search for the decoder's layers, and what is said where it fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expertsteer.models.decoder import DecoderNotFoundError, find_decoder
from expertsteer.states.in_memory import capture
from helpers.contrasts import CONTRAST
from helpers.families import build_or_skip
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers


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
