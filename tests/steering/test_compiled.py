"""Steered models under torch.compile: the same outputs, and no compilation after the first."""

from types import SimpleNamespace

import pytest
import torch

import expertsteer as es
from helpers.steered_models import WIDTH, llama, logits, tokens, vectors

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, of its parts
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model):
    return torch.compile(model, backend="eager", fullgraph=True)


def frames():
    """How often the compiler has traced so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_model_is_steered_whenever_it_was_compiled(model, mode, when):
    ids = tokens()
    unsteered = logits(model, ids, use_cache=False)
    run = compiled(model) if when == "before" else None
    if run is not None:
        torch.testing.assert_close(logits(run, ids, use_cache=False), unsteered)
    steering = es.attach(model if run is None else run, vectors(), strength=0.7, mode=mode)
    run = compiled(model) if run is None else run
    expected = logits(model, ids, use_cache=False)
    assert not torch.allclose(expected, unsteered)
    torch.testing.assert_close(logits(run, ids, use_cache=False), expected)
    steering.detach()
    torch.testing.assert_close(logits(run, ids, use_cache=False), unsteered)


def test_a_slot_that_others_kept_is_the_layer_again_after_detaching(model):
    ids, unsteered = tokens(), logits(model, tokens(), use_cache=False)
    steering = es.attach(model, vectors(), strength=0.7, mode="slot")
    layer = steering.decoder.layers[steering.bank.layers[0]]
    kept, calls = layer.forward, []

    def wrapper(*args, **kwargs):
        calls.append(1)
        return kept(*args, **kwargs)

    layer.forward = wrapper
    run = torch.compile(model, backend="eager")
    assert not torch.allclose(logits(run, ids, use_cache=False), unsteered)
    steering.detach()
    assert layer.forward is wrapper
    torch.testing.assert_close(logits(run, ids, use_cache=False), unsteered)
    assert calls


def test_layers_that_differ_are_steered_each_by_its_own_forward():
    """Some decoders mix kinds of layers; what slots share cannot hold their forward then."""

    class Negated(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden, *args, **kwargs):
            output = self.layer(hidden, *args, **kwargs)
            return (-output[0], *output[1:]) if isinstance(output, tuple) else -output

    model, ids = llama(), tokens()
    model.model.layers[1] = Negated(model.model.layers[1])
    with es.attach(model, vectors(), strength=0.7, mode="slot") as steering:
        assert len({type(layer) for layer in steering.decoder.layers}) == 2
        expected = logits(model, ids, use_cache=False)
        torch.testing.assert_close(logits(compiled(model), ids, use_cache=False), expected)


def test_strength_zero_is_bit_exact_when_compiled(model, mode):
    ids, run = tokens(), compiled(model)
    before = logits(run, ids, use_cache=False)
    with es.attach(model, vectors(), strength=0.0, mode=mode):
        assert torch.equal(logits(run, ids, use_cache=False), before)


def test_no_change_compiles_again(mode):
    model, ids = llama(), tokens()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    run = compiled(model)
    with es.attach(model, vectors(), mode=mode) as steering:
        logits(run, ids, attention_mask=mask, use_cache=False)
        known, seen = frames(), []
        for change in range(20):
            positions = ("all", "prompt", "generated", "last")[change % 4]
            steering.set(
                strength=0.1 * (change % 5),
                vectors=vectors(seed=change),
                positions=positions if mode == "slot" else None,
                prompt_length=1 + change % 6,
            )
            seen.append(logits(run, ids, attention_mask=mask, use_cache=False))
            expected = logits(model, ids, attention_mask=mask, use_cache=False)
            torch.testing.assert_close(seen[-1][mask.bool()], expected[mask.bool()])
        assert frames() == known
    distinct = {tuple(s[:, -1].flatten().tolist()) for s in seen}
    assert len(distinct) > 10  # each change was felt


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_compiled_passes_place_tokens_as_eager_ones(positions):
    model, ids = llama(), tokens(3)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[2, 5:] = 0
    run = compiled(model)
    with es.attach(model, vectors(), positions=positions, mode="slot") as steering:
        for length in (None, 4, torch.tensor([3, 5, 2])):
            steering.set(prompt_length=length)
            for given in (None, mask):
                eager, graph = (
                    logits(m, ids, attention_mask=given, use_cache=False) for m in (model, run)
                )
                torch.testing.assert_close(graph, eager)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_a_compiled_model_generates_what_the_eager_one_does(positions):
    model = llama()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens(1, 4)], dim=1)
    ids = torch.cat([padded, tokens(1, 7, seed=9)])
    options = {"attention_mask": (ids != 0).long(), "do_sample": False, "max_new_tokens": 6}
    with es.attach(model, vectors(), strength=0.8, positions=positions, mode="slot"):
        expected = model.generate(ids, **options)
        model.forward = torch.compile(model.forward, backend="eager")
        for cache in ({}, {"cache_implementation": "static"}):
            assert torch.equal(model.generate(ids, **options, **cache), expected)
        del model.forward


def test_compiled_branches_of_guidance_have_prompts_of_their_own():
    model, ids = llama(), tokens(1)
    options = {
        "negative_prompt_ids": tokens(1, 9, seed=9),
        "attention_mask": torch.ones_like(ids),
        "guidance_scale": 2.0,
        "do_sample": False,
        "max_new_tokens": 4,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with es.attach(model, vectors(), mode="slot") as steering:
        for positions in ("generated", "last"):
            steering.set(positions=positions)
            expected = torch.stack(model.generate(ids, **options).scores)
            model.forward = torch.compile(model.forward, backend="eager")
            found = torch.stack(model.generate(ids, **options).scores)
            del model.forward
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_compiled_one_by_one_are_steered():
    model, ids = llama(), tokens()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with es.attach(model, vectors(), positions="last", mode="slot"):
        expected = logits(model, ids, attention_mask=mask)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    with es.attach(model, vectors(), positions="last", mode="slot"):
        torch.testing.assert_close(logits(model, ids, attention_mask=mask), expected)


@pytest.mark.parametrize("operation", ["add_keep_norm", "remove", "clamp"])
def test_every_operation_compiles(operation):
    model, ids = llama(), tokens()
    gate = es.Gate(vectors(seed=11), 0.0)
    run = compiled(model)
    with es.attach(model, vectors(), strength=0.5, operation=operation, gate=gate):
        torch.testing.assert_close(logits(run, ids), logits(model, ids))


def test_rows_per_sequence_change_without_compiling_again():
    model, ids = llama(), tokens(4)
    experts = {name: vectors(seed=i) for i, name in enumerate("abc")}
    run = compiled(model)
    with es.attach(model, experts, strength=0.5) as steering:
        steering.set_rows(["a", "b", None, "c"])
        torch.testing.assert_close(logits(run, ids), logits(model, ids))
        known = frames()
        for rows in (["c", "c", "a", "b"], [None, "a", "b", {"c": -2.0}]):
            steering.set_rows(rows)
            torch.testing.assert_close(logits(run, ids), logits(model, ids))
        assert frames() == known


@pytest.mark.slow
def test_the_default_backend_fuses_it_and_agrees():
    model, ids = llama(num_hidden_layers=2), tokens()
    run = torch.compile(model, fullgraph=True)
    with es.attach(model, vectors(layers=(0, 1)), strength=0.5, positions="last"):
        torch.testing.assert_close(
            logits(run, ids, use_cache=False), logits(model, ids, use_cache=False)
        )


@pytest.mark.parametrize("operation", ["add", "add_keep_norm"])
def test_passes_of_one_token_follow_every_change_without_compiling_again(operation):
    model, token = llama(), tokens(1, 1)
    run, unsteered = compiled(model), logits(model, token, use_cache=False)
    experts = {name: vectors(seed=i) for i, name in enumerate("ab")}
    with es.attach(model, experts, mode="slot", operation=operation) as steering:
        logits(run, token, use_cache=False)
        known = frames()
        for strength, rows, positions in (
            (0.5, None, "all"),
            (0.5, ["b"], "last"),
            (-1.0, [{"a": 0.5}], "all"),
            (1.0, ["a"], "generated"),
            (0.0, ["a"], "all"),
        ):
            steering.set(strength=strength, positions=positions).set_rows(rows)
            found = logits(run, token, use_cache=False)
            torch.testing.assert_close(found, logits(model, token, use_cache=False))
            steered = strength != 0 and positions != "generated"
            assert torch.allclose(found, unsteered) != steered
        assert frames() <= known + 1  # two vectors for a sequence become one


def test_fx_traces_a_steered_model():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden):
            return hidden + self.linear(hidden)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Block() for _ in range(4)])

        def forward(self, inputs_embeds):
            for layer in self.layers:
                inputs_embeds = layer(inputs_embeds)
            return (inputs_embeds,)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(hidden_size=WIDTH)
            self.decoder = Decoder()

        def forward(self, inputs_embeds):
            return self.decoder(inputs_embeds=inputs_embeds)

    model, states = Model(), torch.randn(2, 5, WIDTH)
    with es.attach(model, vectors(), decoder_layers="decoder.layers") as steering:
        for strength in (1.0, -0.5):  # a traced graph keeps what was set
            steering.set(strength=strength)
            traced = torch.fx.symbolic_trace(model)
            torch.testing.assert_close(traced(states)[0], model(states)[0])
