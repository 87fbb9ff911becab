"""Beyond one vector everywhere: vectors per sequence, operations, gates, positions."""

import pytest
import torch

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.steered_models import llama, logits, tokens, vectors, with_plain_hooks

pytestmark = pytest.mark.transformers


def hooked(model, function, layers=(1, 2)):
    """The definition: ``function(layer, hidden)`` in the place of what each layer gives."""

    def hook(layer):
        def change(module, inputs, output):
            if isinstance(output, tuple):
                return (function(layer, output[0]), *output[1:])
            return function(layer, output)

        return change

    found = find_decoder(model).layers
    return [found[i].register_forward_hook(hook(i)) for i in layers]


def expected(model, function, **inputs):
    handles = hooked(model, function)
    out = logits(model, tokens(4), **inputs)
    for handle in handles:
        handle.remove()
    return out


EXPERTS = {name: vectors(seed=i) for i, name in enumerate("abc")}


def test_each_sequence_of_a_batch_has_its_own_vectors(model):
    rows = ["a", None, ["b", "c"], {"a": 2.0, "c": -1.0}]
    with es.attach(model, EXPERTS, strength=0.5) as steering:
        steering.set_rows(rows)
        batch = logits(model, tokens(4))
        for i, row in enumerate(rows):
            steering.set_rows([row])
            alone = logits(model, tokens(4)[i : i + 1])
            torch.testing.assert_close(batch[i : i + 1], alone)
        steering.set_rows(rows, strengths=[1, 1, 0, 1])
        weaker = logits(model, tokens(4))
        assert not torch.allclose(weaker[2], batch[2]) and torch.equal(weaker[:2], batch[:2])
        steering.set_rows(None)
        together = logits(model, tokens(4))
    with es.attach(model, EXPERTS["a"] + EXPERTS["b"] + EXPERTS["c"], strength=0.5):
        torch.testing.assert_close(logits(model, tokens(4)), together)


def test_an_unsteered_sequence_among_steered_ones_keeps_its_bits(model):
    before = logits(model, tokens(4))
    with es.attach(model, EXPERTS) as steering:
        steering.set_rows([None, "a", "b", "c"])
        assert torch.equal(logits(model, tokens(4))[0], before[0])


def test_vectors_of_a_list_are_named_by_their_place_and_may_steer_other_layers():
    model, ids = llama(), tokens(2)
    a, b = vectors(layers=(1,), seed=1), vectors(layers=(2, 3), seed=2)
    with es.attach(model, [a, b]) as steering:
        steering.set_rows([0, 1])
        batch = logits(model, ids)
    for i, alone in enumerate((a, b)):
        with es.attach(model, alone):
            torch.testing.assert_close(logits(model, ids)[i], batch[i])


def test_every_beam_and_sample_has_the_vectors_of_its_sequence():
    model, ids = llama(), tokens(2)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 4}
    with es.attach(model, EXPERTS, strength=0.8) as steering:
        steering.set_rows(["a", "b"])
        both = model.generate(ids, num_beams=3, **options)
        for i, row in enumerate(["a", "b"]):
            steering.set_rows([row])
            options["attention_mask"] = torch.ones(1, 7, dtype=torch.long)
            alone = model.generate(ids[i : i + 1], num_beams=3, **options)
            assert torch.equal(both[i], alone[0])


def test_many_vectors_in_one_batch():
    model, ids = llama(), tokens(64)
    many = [vectors(seed=i) for i in range(64)]
    with es.attach(model, many, strength=0.5) as steering:
        steering.set_rows(list(range(64)))
        batch = logits(model, ids)
        for i in (0, 17, 63):
            steering.set_rows([i])
            torch.testing.assert_close(logits(model, ids[i : i + 1])[0], batch[i])


@pytest.mark.parametrize(
    ("rows", "strengths", "message"),
    [
        (["a", "z", None, None], None, "no vectors named 'z'; there are"),
        ([], None, "one entry per sequence"),
        ("abc", None, "one entry per sequence"),
        (["a", "b"], [1.0], "one number for each of 2 rows, came 1"),
        (["a", "b"], [1.0, float("nan")], "finite"),
        ([{"a": 1e38}, "b"], [1e38, 1.0], "finite"),
    ],
)
def test_refused_rows_change_nothing(rows, strengths, message):
    model = llama()
    with es.attach(model, EXPERTS) as steering:
        before = logits(model, tokens(4))
        with pytest.raises(ValueError, match=message):
            steering.set_rows(rows, strengths)
        assert torch.equal(logits(model, tokens(4)), before)
        steering.set_rows(["a", "b"])
        with pytest.raises(ValueError, match="given 2 sequences and this forward pass has 4"):
            logits(model, tokens(4))


def along(layer, hidden):
    unit = vectors().vectors[layer] / vectors().vectors[layer].norm()
    return unit, (hidden @ unit).unsqueeze(-1)


def removed(layer, hidden):
    unit, component = along(layer, hidden)
    return hidden - 0.5 * component * unit


def clamped(layer, hidden):
    unit, component = along(layer, hidden)
    return hidden + (0.5 * vectors().displacement(layer).norm() - component) * unit


def rescaled(layer, hidden):
    moved = hidden + 0.5 * vectors().displacement(layer)
    return moved * hidden.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("operation", "definition"),
    [("remove", removed), ("clamp", clamped), ("add_keep_norm", rescaled)],
)
def test_operations_do_what_they_say(model, operation, definition, backend):
    want = expected(model, definition)
    with es.attach(model, vectors(), strength=0.5, operation=operation, backend=backend):
        torch.testing.assert_close(logits(model, tokens(4)), want)


def test_a_clamp_of_strength_zero_takes_the_component_away():
    model = llama()
    with es.attach(model, vectors(), strength=0.0, operation="clamp"):
        clamped_to_zero = logits(model, tokens(4))
    with es.attach(model, vectors(), strength=1.0, operation="remove"):
        torch.testing.assert_close(logits(model, tokens(4)), clamped_to_zero)


def test_a_gate_steers_only_tokens_beyond_its_threshold(model):
    looking = vectors(seed=11)

    def gated(layer, hidden):
        gate = looking.vectors[layer]
        through = (hidden @ gate) / gate.norm() > 0.2 * looking.scales[layer]
        assert bool(through.any()) and not bool(through.all())
        return hidden + through.unsqueeze(-1) * 0.5 * vectors().displacement(layer)

    want = expected(model, gated)
    with es.attach(model, vectors(), strength=0.5, gate=es.Gate(looking, 0.2)):
        torch.testing.assert_close(logits(model, tokens(4)), want)


def test_a_gate_needs_a_direction_at_every_layer():
    with pytest.raises(ValueError, match=r"gate has no vector at the steered layers \[2\]"):
        es.attach(llama(), vectors(), gate=es.Gate(vectors(layers=(1,))))
    with pytest.raises(ValueError, match="gate must be a Gate"):
        es.attach(llama(), vectors(), gate=vectors())
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        es.Gate(vectors(), float("nan"))


def test_an_explicit_mask_places_the_tokens_cached_or_not():
    model, ids = llama(), tokens(2)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    handles = with_plain_hooks(model, vectors(), 0.6, mask[:, :7].float())
    want = logits(model, ids)
    for handle in handles:
        handle.remove()
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6}
    with es.attach(model, vectors(), strength=0.6, positions=mask) as steering:
        torch.testing.assert_close(logits(model, ids), want)
        runs = [model.generate(ids, use_cache=cache, **options) for cache in (True, False)]
        assert torch.equal(*runs)
        steering.set(positions=lambda place, inputs: place < 5)
        early = logits(model, ids)
        steering.set(positions=torch.arange(7).unsqueeze(0) < 5)
        assert torch.equal(logits(model, ids), early)
        for wrong in ([1, 0, 1], torch.ones(7), "every", 3, {}):
            with pytest.raises(ValueError, match="positions must be"):
                steering.set(positions=wrong)
        steering.set(positions=torch.ones(3, 7, dtype=torch.bool))
        with pytest.raises(ValueError, match="positions are a mask for 3 sequences"):
            logits(model, ids)
        steering.set(positions=lambda place, inputs: place.float())
        with pytest.raises(ValueError, match="positions must return a bool tensor"):
            logits(model, ids)


def test_auto_goes_over_to_slots_when_a_bias_no_longer_serves():
    model, ids = llama(), tokens(2)
    with es.attach(model, vectors(), strength=0.6) as steering:
        assert steering.mode == "fold"
        folded = logits(model, ids)
        steering.set(positions="last")
        assert steering.mode == "slot"
        last = logits(model, ids)
        steering.set(positions="all")
        torch.testing.assert_close(logits(model, ids), folded)
        assert not torch.allclose(last, folded)
    with es.attach(model, vectors(), mode="fold") as steering:
        for change in ({"positions": "last"},):
            with pytest.raises(ValueError, match='mode="fold" adds the same vectors'):
                steering.set(**change)
        with pytest.raises(ValueError, match='mode="fold" adds the same vectors'):
            steering.set_rows([0, None])
    for options, reason in (
        ({"positions": "last"}, "only positions"),
        ({"operation": "remove"}, "only an ungated addition"),
    ):
        with pytest.raises(ValueError, match=reason):
            es.attach(model, vectors(), mode="fold", **options)
    with pytest.raises(ValueError, match="mode must be one of"):
        es.attach(model, vectors(), mode="bias")
    with pytest.raises(ValueError, match="operation must be one of"):
        es.attach(model, vectors(), operation="subtract")
