"""Every family generates steered as it should: padded, in beams, sampled, static, compiled.

A property that a family's unsteered model does not have in this transformers is skipped by name.
"""

import pytest
import torch

import expertsteer as es
from expertsteer.models.description import hidden_size
from helpers.families import FAMILIES, LAYERS, build_or_skip
from helpers.steered_models import tokens, vectors

pytestmark = pytest.mark.transformers

OPTIONS = {"pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 5}


def padded(length=7):
    """Two prompts, one of them shorter and padded on the left."""
    ids = tokens(2, length)
    ids[0, :3] = 0
    return ids, (ids != 0).long()


def next_logits(model, ids, mask, **options):
    settings = {"do_sample": False} | OPTIONS | options
    out = model.generate(
        ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **settings
    )
    return torch.stack(out.logits, dim=1)  # [batch, new tokens, vocabulary]


def steered(model, **options):
    middle = (0, LAYERS - 1)
    added = vectors(layers=middle, width=hidden_size(model))
    return es.attach(model, added, strength=0.4, **options)


def alike(a, b):
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def property_of(model, runs, name):
    """Skip where the unsteered model itself gives different logits."""
    try:
        same = alike(*runs())
    except (ValueError, AttributeError, TypeError, RuntimeError, UserWarning) as refused:
        pytest.skip(f"{name} refuses this unsteered: {str(refused)[:100]}")
    if not same:
        pytest.skip(f"{name}: not so unsteered in this transformers")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param, build_or_skip(request.param)


@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_a_left_padded_batch_equals_its_rows(family, mode):
    name, model = family
    ids, mask = padded()

    def runs():
        batch = next_logits(model, ids, mask)
        alone = next_logits(model, ids[:1, 3:], mask[:1, 3:])
        return batch[:1], alone

    property_of(model, runs, name)
    for positions in ("all", "last") if mode == "slot" else ("all",):
        with steered(model, positions=positions, mode=mode):
            torch.testing.assert_close(*runs(), rtol=1e-3, atol=1e-4)


def test_beams_and_samples_are_the_same_cached_or_not(family):
    name, model = family
    ids, mask = padded()

    def runs(**options):
        drawn = []
        for cache in (True, False):
            torch.manual_seed(3)
            drawn.append(next_logits(model, ids, mask, use_cache=cache, **options))
        return drawn

    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        property_of(model, lambda options=options: runs(**options), name)
        for positions in ("all", "generated"):
            with steered(model, positions=positions):
                torch.testing.assert_close(*runs(**options), rtol=1e-3, atol=1e-4)


def test_a_static_cache_changes_nothing(family):
    name, model = family
    ids, mask = padded()

    def runs():
        static = next_logits(model, ids, mask, cache_implementation="static")
        return static, next_logits(model, ids, mask)

    property_of(model, runs, name)
    for positions in ("all", "prompt", "last"):
        with steered(model, positions=positions, mode="slot"):
            torch.testing.assert_close(*runs(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler says of the families' own code
@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_the_compiled_model_equals_the_eager_one_without_compiling_again(family, mode):
    name, model = family
    ids = tokens(2, 7)
    torch.compiler.reset()
    run = torch.compile(model, backend="eager", fullgraph=True)

    def forward(which):
        with torch.no_grad():
            return which(ids, use_cache=False).logits

    try:
        forward(run)
    except Exception as refused:
        pytest.skip(f"{name} does not compile in one graph unsteered: {str(refused)[:80]}")
    with steered(model, mode=mode) as steering:
        forward(run)
        known = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for strength in (0.2, -0.7, 0.0):
            steering.set(strength=strength)
            torch.testing.assert_close(forward(run), forward(model), rtol=1e-4, atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == known
    torch.compiler.reset()


def test_gradients_reach_the_embedding_through_every_family(family):
    name, model = family
    embeds = model.get_input_embeddings()(tokens(2, 5)).detach().requires_grad_()

    def gradient():
        embeds.grad = None
        model(inputs_embeds=embeds).logits.float().sum().backward()
        return embeds.grad.clone()

    property_of(model, lambda: (gradient(), gradient()), name)
    for mode in ("auto", "slot"):
        with steered(model, mode=mode):
            assert bool(torch.isfinite(gradient()).all()) and float(embeds.grad.abs().sum()) > 0
