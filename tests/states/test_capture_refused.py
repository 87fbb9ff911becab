"""What capture refuses, by name and with the reason, and what it still takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.states.in_memory import capture
from expertsteer.states.on_disk import capture_to
from expertsteer.support.reading import ArtifactError
from helpers.contrasts import CONTRAST, TEXTS
from helpers.families import LAYERS, VOCABULARY
from helpers.passes import hidden_of
from helpers.tiny_tokenizer import WORDS, sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"position": "first"}, "position must be 'last', 'mean' or an integer, came 'first'"),
        ({"position": True}, "position must be"),
        ({"position": 1.0}, "position must be"),
        ({"layers": [0, LAYERS]}, r"layers: 3 is out of range for a model with 3 layers \(0..2\)"),
        ({"layers": [-1]}, "layers: -1 is out of range"),
        ({"layers": "0"}, "layers: '0' is out of range"),
        ({"layers": []}, "at least one"),
        ({"layers": [1, 1]}, "different indices"),
        ({"batch_size": 0}, "batch_size must be a positive integer, came 0"),
        ({"max_length": 0}, "max_length must be a positive integer or None, came 0"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"dtype": "half precision"}, "dtype must be"),
        ({"decoder_layers": "nowhere"}, "dotted path"),
    ],
)
def test_arguments_out_of_their_range_are_refused(model, options, reason):
    with pytest.raises(ValueError, match=reason):
        capture(model, tiny_tokenizer(), CONTRAST, **options)
    with pytest.raises(ValueError, match="contrast must be a ContrastSet, came list"):
        capture(model, tiny_tokenizer(), TEXTS)


def test_the_tokenizer_of_another_model_is_refused(model):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    contrast = ContrastSet.from_texts(["w1", "w2 new"], [0, 1])
    with pytest.raises(ValueError, match=f"token id {VOCABULARY} for example 1.* embeds 64 tokens"):
        capture(model, tokenizer, contrast)


def test_a_state_that_is_not_finite_names_layer_and_example(model):
    poisoned = tiny_tokenizer()("w3")["input_ids"][-1]

    def poison(module, args, output):
        output[args[0] == poisoned] = float("nan")

    model.model.embed_tokens.register_forward_hook(poison)
    contrast = ContrastSet.from_texts(["w1", "w2 w1", f"{WORDS[3]} w2"], [0, 1, 1])
    with pytest.raises(ValueError, match="layer 0 gives example 2 a state that is not finite"):
        capture(model, tiny_tokenizer(), contrast, batch_size=2)


def test_overflow_in_the_type_asked_for_is_not_finite(model):
    def louder(module, args, output):  # transformers 4 returns tuples
        hidden_of(output).mul_(1e6)

    model.model.layers[1].register_forward_hook(louder)
    with pytest.raises(ValueError, match="layer 1 gives example .* torch.float16"):
        capture(model, tiny_tokenizer(), CONTRAST, dtype=torch.float16)


class Odd(nn.Module):
    """Two blocks, run in the given order; one of them may squeeze or flatten its output."""

    def __init__(self, order=(0, 1), reshape=None, widths=(4, 4)):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, width) for width in widths])
        self.order, self.reshape = order, reshape
        if reshape:
            self.blocks[1].register_forward_hook(lambda m, a, out: reshape(out))

    def forward(self, input_ids):
        for index in self.order:
            hidden = self.blocks[index](self.embed(input_ids))
        return hidden


@pytest.mark.parametrize(
    "odd, reason",
    [
        ({"order": (0,)}, r"layers \[1\] did not run"),
        ({"order": (0, 1, 0)}, "layer 0 ran twice"),
        ({"reshape": lambda out: out.flatten(0, 1)}, r"must return hidden states \[7, 13, width\]"),
        ({"reshape": lambda out: {"hidden": out}}, "layer 1 .*must return hidden states.*dict"),
        ({"widths": (4, 8)}, "layer 1 is 8 wide and layer 0 4"),
    ],
)
def test_layers_that_are_no_decoder_layers_are_refused(odd, reason):
    model = Odd(**odd)
    with pytest.raises(ValueError, match=reason):
        capture(model, tiny_tokenizer(), CONTRAST)


def test_any_module_with_a_list_of_blocks_can_be_captured():
    came = capture(Odd(), tiny_tokenizer(), CONTRAST, position=0)
    assert came.states.shape == (2, 7, 4)
    assert came.model["hidden_size"] == 4 and came.model["num_layers"] == 2


def test_a_refused_capture_binds_nobody(model, tmp_path, monkeypatch):
    texts = [sentence(4, seed=i) for i in range(8)]
    contrast = ContrastSet.from_texts(texts, [i % 2 for i in range(8)])
    tokenizer = tiny_tokenizer()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 3000}))
        with pytest.raises(ArtifactError, match="fewer layers or a narrower dtype"):
            capture_to(tmp_path, model, tokenizer, contrast, progress=False)
        fewer = {"layers": [0], "dtype": "float16", "progress": False}
        assert capture_to(tmp_path, model, tokenizer, contrast, **fewer).layers == (0,)
    other = tmp_path / "other"
    with pytest.raises(ValueError, match="position 9 is out of range"):
        capture_to(other, model, tokenizer, contrast, position=9, progress=False)
    assert capture_to(other, model, tokenizer, contrast, progress=False).position == "last"
