"""What attaching and changing refuse, with nothing changed, and what a pass cannot be run with."""

import copy
import pickle

import pytest
import torch

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.steered_models import WIDTH, gpt2, llama, logits, tokens, vectors, with_plain_hooks

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0.0, "positions": "nope"},
        {"strength": float("inf")},
        {"strength": 2.0, "prompt_length": -1},
        {"positions": "last", "prompt_length": [1.5]},
        {"strength": 1e38, "vectors": 1e38 * vectors()},
        {"strength": 3.0, "vectors": 0.0 * vectors()},
    ],
    ids=str,
)
def test_a_refused_change_changes_nothing(model, wrong, mode):
    ids = tokens()
    with es.attach(model, vectors(), strength=0.5, mode=mode) as steering:
        before = logits(model, ids)
        with pytest.raises(ValueError):
            steering.set(**wrong)
        assert torch.equal(logits(model, ids), before)
        assert (steering.strength, steering.positions) == (0.5, "all")


def test_a_backend_that_cannot_serve_is_refused_when_attaching(model):
    for backend in ("cuda!", "triton"):
        with pytest.raises(ValueError, match="backend"):
            es.attach(model, vectors(), backend=backend)
    es.attach(model, vectors()).detach()


def test_a_second_steering_of_one_model_is_refused_and_changes_nothing(model, mode):
    ids = tokens()
    with es.attach(model, vectors(), mode=mode):
        steered = logits(model, ids)
        with pytest.raises(ValueError, match="already steered.*list of them"):
            es.attach(model, vectors(seed=8), mode=mode)
        assert torch.equal(logits(model, ids), steered)


def test_calling_a_layer_or_reading_no_padding_is_loud(model):

    layer = find_decoder(model).layers[1]
    square = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    with es.attach(model, vectors(), mode="slot"):
        with pytest.raises(RuntimeError, match="layer 1 .*outside its decoder's forward"):
            layer(torch.zeros(1, 2, WIDTH))
        with pytest.raises(ValueError, match=r"attention_mask must be \[batch, tokens\]"):
            logits(model, tokens(), attention_mask=square)


def test_a_layer_that_does_not_run_is_loud(mode):
    model = llama()
    with es.attach(model, vectors(layers=(3,))):
        kept = model.model.layers
        model.model.layers = kept[:3]  # an early exit
        with pytest.raises(RuntimeError, match=r"layers \[3\] carry a vector but did not run"):
            logits(model, tokens(), use_cache=False)
        model.model.layers = kept


def test_copies_of_a_live_steered_model_are_refused(model, mode):
    with es.attach(model, vectors(), mode=mode):
        with pytest.raises(ValueError, match="cannot be deep-copied; detach"):
            copy.deepcopy(model)
        with pytest.raises(ValueError, match="cannot be pickled; detach"):
            pickle.dumps(model)
    copy.deepcopy(model)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (vectors(layers=(9,)),),
            {},
            r"layer 9 is out of range for a model with 4 layers \(0..3\)",
        ),
        ((vectors(width=31),), {}, "width 31, the model's hidden size is 32"),
        ((vectors(target={"architecture": "Other"}),), {}, "fitted for a model with architecture"),
        ((vectors(target={"num_layers": 12}),), {}, "num_layers 12, this one has 4"),
        (({1: torch.zeros(WIDTH)},), {}, "vectors named 1 must be SteeringVectors, came Tensor"),
        ((vectors(),), {"strength": float("nan")}, "strength must be a finite number"),
        ((vectors(),), {"positions": "every"}, "positions must be one of"),
        ((vectors(),), {"decoder_layers": "model.blocks"}, "model.blocks"),
    ],
)
def test_bad_input_leaves_the_model_unsteered(arguments, options, message):
    model = llama()
    before = logits(model, tokens())
    with pytest.raises(ValueError, match=message):
        es.attach(model, *arguments, **options)
    assert torch.equal(logits(model, tokens()), before)


@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_a_layer_that_stands_twice_in_the_list_is_refused(mode):
    model = llama()
    model.model.layers[3] = model.model.layers[1]
    with pytest.raises(ValueError, match=r"layers \[1, 3\] of model.layers are one and the same"):
        es.attach(model, vectors(), mode=mode)
    assert es.detach(model) is False
    expected = with_plain_hooks(model, vectors(layers=(0, 2)), 1.0, torch.ones(2, 7))
    hooked = logits(model, tokens(), use_cache=False)
    for hook in expected:
        hook.remove()
    with es.attach(model, vectors(layers=(0, 2)), mode=mode):  # the others stand once
        found = logits(model, tokens(), use_cache=False)
    torch.testing.assert_close(found, hooked, rtol=1e-4, atol=1e-4)


NO_NUMBERS = [None, [1.0], (0.5, 0.5), {}, "1.0", torch.ones(2), float("nan"), 10**400]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: str(wrong)[:12])
def test_a_strength_that_is_no_number_is_refused_wherever_it_is_given(wrong):
    model = llama()
    if wrong is not None:  # which is the calibrated one, or 1
        with pytest.raises(ValueError, match="strength must be a"):
            es.attach(model, vectors(), strength=wrong)
    with pytest.raises(ValueError, match="Gate threshold must be a finite number"):
        es.Gate(vectors(), wrong)
    with es.attach(model, {"a": vectors()}, mode="slot") as steering:
        for rows, strengths in ((["a"], [wrong]), ([{"a": wrong}], None)):
            with pytest.raises(ValueError, match="must be a finite number, came"):
                steering.set_rows(rows, strengths)
        if wrong is not None:  # which is what stays as it is
            with pytest.raises(ValueError, match="strength must be a"):
                steering.set(strength=wrong)
        with pytest.raises(ValueError, match="strengths must"):
            steering.set_rows(["a"], 1.0)


@pytest.mark.parametrize("operation", ["add", "add_keep_norm", "clamp", "remove"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_no_strength_makes_zeros_of_the_logits_in_silence(build, operation):
    """The squares in a norm overflow long before the states do."""
    model, ids = build(), tokens()
    refused, exponents = 0, (1, 3, 6, 10, *range(14, 24), 30, 37, 38)
    for exponent in exponents:
        try:
            with es.attach(model, vectors(), strength=10.0**exponent, operation=operation):
                assert bool((logits(model, ids) != 0).any(dim=-1).all())
        except (ValueError, RuntimeError) as error:
            assert f"strength {10.0**exponent:g} " in str(error) and "finite" in str(error)
            refused += 1
    assert 4 <= refused < len(exponents)
