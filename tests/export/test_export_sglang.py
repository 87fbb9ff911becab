"""Hooks for SGLang, on modules that return what its decoder layers return."""

import importlib
import json
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import nn

import expertsteer as es
from expertsteer.export import sglang, sglang_hook
from expertsteer.export.sglang import export_sglang, launch_command, make_hook
from helpers import ROOT
from helpers.steered_models import llama, logits, tokens, vectors

MADE = vectors(layers=(1, 11), width=6)
STRENGTH = 0.5
SERVE = ROOT / "docs" / "how-to" / "serve.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_sglang(MADE, tmp_path_factory.mktemp("sglang") / "out", strength=STRENGTH)


def register(model, folder):
    """As SGLang does: names are matched as patterns, factories are imported by their path."""
    names = []
    for entry in json.loads((folder / "hooks.json").read_text()):
        module, _, factory = entry["hook_factory"].partition(":")
        hook = getattr(importlib.import_module(module), factory)(entry["config"])
        for name, part in model.named_modules():
            if any(fnmatch(name, pattern) for pattern in entry["target_modules"]):
                part.register_forward_hook(hook)
                names.append(name)
    return names


@pytest.fixture
def importable(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    sys.modules.pop("expertsteer_hook", None)


class Layer(nn.Module):
    """Like a decoder layer of SGLang: the residual is added by the next layer's first norm."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, positions, hidden, residual):
        residual = hidden if residual is None else hidden + residual
        return torch.tanh(self.mix(residual)), residual


class Stream(nn.Module):
    """Like SGLang's GPT-2: the layer adds the residual itself."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, positions, hidden, residual):
        return hidden + torch.tanh(self.mix(hidden))


class Model(nn.Module):
    def __init__(self, kind, width=6, depth=12):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(kind(width) for _ in range(depth))

    def forward(self, states, seen=None):
        residual = None
        for layer in self.model.layers:
            output = layer(None, states, residual)
            states, residual = output if isinstance(output, tuple) else (output, None)
            if seen is not None:
                seen.append(states if residual is None else states + residual)
        return states if residual is None else states + residual


def definition(model, states, delta):
    """The residual stream with the vectors added after their layers."""
    for i, layer in enumerate(model.model.layers):
        output = layer(None, states, None)
        states = sum(output) if isinstance(output, tuple) else output
        if i in delta:
            states = states + delta[i]
    return states


@pytest.mark.parametrize("kind", [Layer, Stream])
def test_the_vectors_are_added_to_the_residual_stream(kind, importable):
    model, states = Model(kind), torch.randn(5, 6)
    delta = {i: STRENGTH * MADE.displacement(i) for i in MADE.layers}
    plain, expected = definition(model, states, {}), definition(model, states, delta)
    torch.testing.assert_close(model(states), plain)
    assert register(model, importable) == ["model.layers.1", "model.layers.11"]
    torch.testing.assert_close(model(states), expected)
    assert (plain - expected).abs().max() > 0.1


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sum_over_ranks_adds_the_vector_once(ranks, folder):
    # With tensor parallelism every rank holds a part of hidden_states and the whole residual.
    hook = make_hook({"vectors": str(folder / "steering.npz"), "layer": 1, "strength": 1.0})
    parts, residual = torch.randn(ranks, 3, 6), torch.randn(3, 6)
    outputs = [hook(None, (), (part, residual)) for part in parts]
    assert all(torch.equal(hidden, part) for (hidden, _), part in zip(outputs, parts))
    stream = sum(hidden for hidden, _ in outputs) + outputs[0][1]
    torch.testing.assert_close(stream, parts.sum(0) + residual + MADE.displacement(1))


def test_what_else_a_layer_returns_passes_through(folder):
    hook = make_hook({"vectors": str(folder / "steering.npz"), "layer": 1, "strength": 1.0})
    hidden, residual, delta = torch.randn(3, 6), torch.randn(3, 6), MADE.displacement(1)
    same, changed, other = hook(None, (), (hidden, residual, "other"))
    assert same is hidden and other == "other"
    torch.testing.assert_close(changed, residual + delta)
    only, none = hook(None, (), (hidden, None))
    torch.testing.assert_close(only, hidden + delta)
    assert none is None
    assert torch.equal(hook(None, (), [hidden])[0], hidden + delta)
    before = residual.clone()
    hook(None, (), (hidden, residual))
    assert torch.equal(residual, before)  # never in place: others may hold it
    assert hook(None, (), torch.zeros(0, 6)).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_type_of_the_states_is_kept(dtype, folder):
    hook = make_hook({"vectors": str(folder / "steering.npz"), "layer": 11, "strength": -2.0})
    hidden, residual = torch.randn(2, 3, 6).to(dtype)
    _, changed = hook(None, (), (hidden, residual))
    assert changed.dtype == dtype
    torch.testing.assert_close(changed, residual + (-2 * MADE.displacement(11)).to(dtype))


def test_a_layer_of_transformers_takes_the_hook_too(tmp_path):
    model, ids = llama(), tokens()
    some = vectors(layers=(1, 2))
    export_sglang(some, tmp_path / "out", strength=0.3)
    with es.attach(model, some, strength=0.3, mode="slot"):
        expected = logits(model, ids)
    for i in some.layers:
        config = {"vectors": str(tmp_path / "out" / "steering.npz"), "layer": i, "strength": 0.3}
        model.model.layers[i].register_forward_hook(make_hook(config))
    torch.testing.assert_close(logits(model, ids), expected)


def test_the_folder_holds_all_a_server_needs(folder, tmp_path):
    assert sorted(p.name for p in folder.iterdir()) == [
        "expertsteer_hook.py",
        "hooks.json",
        "steering.npz",
    ]
    source = (folder / "expertsteer_hook.py").read_text()
    assert "import expertsteer" not in source and "from expertsteer" not in source
    entries = json.loads((folder / "hooks.json").read_text())
    assert [set(e) for e in entries] == [{"name", "target_modules", "hook_factory", "config"}] * 2
    text = (folder / "hooks.json").read_text()
    assert str(folder) not in text  # it can be moved


def test_the_command_starts_a_server_whose_passes_all_call_hooks(folder):
    """A graph that is replayed calls none, and SGLang records before it registers them."""
    words = shlex.split(launch_command(folder, "a model"))
    assert words[0] == f"PYTHONPATH={folder}"
    assert words[words.index("--model-path") + 1] == "a model"
    for phase in ("decode", "prefill"):
        assert f"--cuda-graph-backend-{phase}=disabled" in words
    for text in (sglang.__doc__, Path(sglang_hook.__file__).read_text(), SERVE.read_text()):
        assert all(option in text for option in sglang.WITHOUT_GRAPHS.split())


def test_names_match_one_layer_each(tmp_path):
    out = export_sglang(MADE, tmp_path / "out", layers_path="transformer.h")
    patterns = [e["target_modules"] for e in json.loads((out / "hooks.json").read_text())]
    assert patterns == [["transformer.h.1"], ["transformer.h.11"]]
    names = [f"transformer.h.{i}{rest}" for i in range(12) for rest in ("", ".mlp")]
    matched = [[n for n in names if fnmatch(n, p)] for (p,) in patterns]
    assert matched == patterns


@pytest.mark.parametrize(
    "output",
    [torch.zeros(3, 5), (torch.zeros(3, 5), torch.zeros(3, 6)), (torch.zeros(3, 6), "x"), (), None],
)
def test_another_kind_of_output_is_an_error(output, folder):
    hook = make_hook({"vectors": str(folder / "steering.npz"), "layer": 1, "strength": 1.0})
    with pytest.raises(TypeError, match=r"Linear returned .*expected hidden states \[tokens, 6\]"):
        hook(nn.Linear(1, 1), (), output)


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, r"lacks \['vectors', 'layer', 'strength'\]"),
        ({"layer": 2, "strength": 1.0}, "has no vector for layer 2, only"),
        ({"layer": 1, "strength": 1e60}, "infinite"),
    ],
)
def test_settings_that_are_wrong(config, message, folder):
    if config:
        config["vectors"] = str(folder / "steering.npz")
    with pytest.raises(ValueError, match=message):
        make_hook(config)


@pytest.mark.parametrize(
    "wrong, options, message",
    [
        (MADE, {"layers_path": "model.layers.*"}, "layers_path must be a dotted name"),
        (MADE, {"strength": 0}, "must not be 0"),
        (es.SteeringVectors({1: torch.zeros(3)}), {}, "all zero"),
    ],
)
def test_bad_arguments_write_nothing(wrong, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_sglang(wrong, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(folder):
    with pytest.raises(ValueError, match="exists already"):
        export_sglang(MADE, folder)
