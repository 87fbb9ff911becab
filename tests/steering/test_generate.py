"""Steering while a model generates: caches, padding, positions, every family."""

import pytest
import torch

import expertsteer as es
from expertsteer.models.description import hidden_size
from expertsteer.steering.given_positions import POSITIONS
from expertsteer.steering.positions import token_mask
from expertsteer.steering.prompt import Prompt
from helpers.families import FAMILIES, build_or_skip
from helpers.steered_models import llama, logits, tokens, vectors, with_plain_hooks

pytestmark = pytest.mark.transformers


GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_generation_equals_uncached(model, positions):
    ids = tokens()
    mask = torch.ones_like(ids)
    with es.attach(model, vectors(), strength=0.8, positions=positions):
        runs = [
            model.generate(
                ids,
                attention_mask=mask,
                use_cache=cache,
                output_logits=True,
                return_dict_in_generate=True,
                **GREEDY,
            )
            for cache in (True, False)
        ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, full in zip(runs[0].logits, runs[1].logits):
        torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_left_padded_batch_equals_its_rows(model, positions):
    rows = [tokens(1, length, seed=length) for length in (3, 7, 5)]
    padded = torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, 7 - row.shape[1] :] = row
    mask = (padded != 0).long()
    with es.attach(model, vectors(), strength=0.8, positions=positions):
        batch = model.generate(padded, attention_mask=mask, **GREEDY)[:, 7:]
        for i, row in enumerate(rows):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **GREEDY)
            assert torch.equal(batch[i], alone[0, row.shape[1] :])


def test_each_position_steers_something_else(model):
    outputs = []
    with es.attach(model, vectors(), strength=0.8) as steering:
        for positions in POSITIONS:
            steering.set(positions=positions)
            out = model.generate(
                tokens(1),
                attention_mask=torch.ones(1, 7, dtype=torch.long),
                output_logits=True,
                return_dict_in_generate=True,
                do_sample=False,
                max_new_tokens=3,
            )
            outputs.append(torch.stack(out.logits))
        steering.set(strength=0.0)
        unsteered = logits(model, tokens(1))[:, -1]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b) for b in outputs[i + 1 :])
    generated = outputs[POSITIONS.index("generated")]
    torch.testing.assert_close(generated[0], unsteered)  # the first new token comes unsteered


def test_padding_is_never_steered(model):
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens(1, 4)], dim=1)
    mask = (padded != 0).long()
    with torch.no_grad():
        plain = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2]
        with es.attach(model, vectors(layers=(1,)), mode="slot"):
            steered = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    assert torch.equal(steered[:, :3], plain[:, :3])
    assert not torch.isclose(steered[:, 3:], plain[:, 3:]).all(dim=-1).any()


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("given", [True, False], ids=["mask given", "mask inferred"])
def test_padding_in_generate_is_never_steered(given, cache):
    model = llama()
    seen = []

    def watch(module, arguments):
        seen.append(arguments[0].clone())

    model.model.layers[2].register_forward_pre_hook(watch)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens(1, 4)], dim=1)
    options = {"cache_implementation": cache} | GREEDY | {"max_new_tokens": 2}
    if given:
        options["attention_mask"] = (padded != 0).long()
    model.generate(padded, **options)
    plain = seen[0]
    with es.attach(model, vectors(layers=(1,)), mode="slot"):
        seen.clear()
        model.generate(padded, **options)
    same = (seen[0] == plain).all(dim=-1)
    assert same.tolist() == [[True] * 3 + [False] * 4]


def test_a_prompt_length_places_a_scored_continuation(model):
    ids = tokens(2)
    before = torch.arange(7).expand(2, 7) >= torch.tensor([[3], [5]])
    handles = with_plain_hooks(model, vectors(), 0.6, before.float())
    expected = logits(model, ids)
    for handle in handles:
        handle.remove()
    with es.attach(model, vectors(), strength=0.6, positions="generated") as steering:
        steering.set(prompt_length=torch.tensor([3, 5]))
        torch.testing.assert_close(logits(model, ids), expected)
        mask = torch.ones_like(ids)
        known = model.generate(ids, attention_mask=mask, **GREEDY)
        steering.set(prompt_length=None)
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), known)
        assert not torch.allclose(logits(model, ids), expected)
        steering.set(prompt_length=torch.tensor([3, 5, 7]))
        with pytest.raises(ValueError, match="each of 2 sequences, came 3"):
            logits(model, ids)


def test_last_is_the_last_token_of_every_row_outside_generate():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    chosen = token_mask("last", Prompt(), {"attention_mask": mask}, (3, 4), torch.device("cpu"))
    assert chosen.int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_beam_search_and_sampling_run_steered(model):
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    with es.attach(model, vectors(), strength=0.5, positions="generated"):
        beams = [
            model.generate(ids, attention_mask=mask, num_beams=3, use_cache=c, **GREEDY)
            for c in (True, False)
        ]
        assert torch.equal(*beams)
        drawn = []
        for _ in range(2):
            torch.manual_seed(5)
            drawn.append(model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=6))
        assert torch.equal(*drawn)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_steered_by_definition(name):
    model = build_or_skip(name)
    v = vectors(layers=(0, 1), width=hidden_size(model))
    handles = with_plain_hooks(model, v, 0.4, torch.ones(2, 7))
    expected = logits(model, tokens())
    for handle in handles:
        handle.remove()
    with es.attach(model, v, strength=0.4):
        torch.testing.assert_close(logits(model, tokens()), expected)


def next_token_logits(model, use_cache):
    out = model.generate(
        tokens(),
        attention_mask=torch.ones(2, 7, dtype=torch.long),
        use_cache=use_cache,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        do_sample=False,
        max_new_tokens=5,
    )
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_generates_alike_with_and_without_a_cache(name):
    model = build_or_skip(name)
    unsteered = [next_token_logits(model, cache) for cache in (True, False)]
    if not torch.allclose(*unsteered, rtol=1e-3, atol=1e-4):
        pytest.skip(f"{name}: its own cache changes its unsteered logits in this transformers")
    with es.attach(model, vectors(layers=(0, 1), width=hidden_size(model)), strength=0.4) as s:
        for positions in POSITIONS:
            s.set(positions=positions)
            cached, full = (next_token_logits(model, cache) for cache in (True, False))
            assert not torch.allclose(cached, unsteered[0])
            torch.testing.assert_close(cached, full, rtol=1e-3, atol=1e-4)
