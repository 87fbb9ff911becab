"""Steering on live models: what is added, and that everything is put back."""

import pytest
import torch

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.steered_models import llama, logits, tokens, vectors, with_plain_hooks

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("how", [{"mode": "fold"}, {"backend": "reference"}, {"backend": "native"}])
def test_it_adds_what_the_definition_says(model, how):
    ids, v = tokens(), vectors()
    handles = with_plain_hooks(model, v, 0.7, torch.ones(2, 7))
    expected = logits(model, ids)
    for handle in handles:
        handle.remove()
    with es.attach(model, v, strength=0.7, **how):
        torch.testing.assert_close(logits(model, ids), expected)


def test_strength_zero_and_leaving_are_bit_exact(model, mode):
    ids = tokens()
    before, names = logits(model, ids), {n: set(vars(m)) for n, m in model.named_modules()}
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    with es.attach(model, vectors(), strength=0.0, mode=mode) as steering:
        assert torch.equal(logits(model, ids), before)
        steering.set(strength=1.0)
        assert not torch.allclose(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == names
    assert all(torch.equal(weights[n], p) for n, p in model.state_dict().items())


def test_a_body_that_raises_still_restores(model, mode):
    before = logits(model, tokens())
    with pytest.raises(KeyError, match="mine"), es.attach(model, vectors(), mode=mode):
        raise KeyError("mine")
    assert torch.equal(logits(model, tokens()), before)
    es.attach(model, vectors(), mode=mode).detach()  # and it can be attached again


def test_a_forward_replaced_by_others_survives(model):

    layer = find_decoder(model).layers[1]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = layer.forward
    with es.attach(model, vectors()):
        assert layer.forward is not theirs
    assert layer.forward is theirs


def test_detach_twice_is_harmless_and_using_it_afterwards_is_not_silent(model, mode):
    steering = es.attach(model, vectors(), mode=mode)
    steering.detach()
    steering.detach()
    assert not steering.attached
    with pytest.raises(RuntimeError, match="detached; attach again"):
        steering.set(strength=1.0)
    with pytest.raises(RuntimeError, match="detached; attach again"), steering:
        pass


def test_threads_do_not_mix_their_passes():
    from concurrent.futures import ThreadPoolExecutor

    model = llama()
    inputs = [tokens(2, 3 + i % 5, seed=i) for i in range(40)]
    with es.attach(model, vectors(), strength=0.5, positions="last"):
        alone = [logits(model, ids) for ids in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda ids: logits(model, ids), inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_strength_and_vectors_change_in_place(model, mode):
    ids = tokens()
    with es.attach(model, vectors(), strength=0.3, mode=mode) as steering:
        first = logits(model, ids)
        steering.set(strength=-0.3)
        assert not torch.allclose(logits(model, ids), first)
        steering.set(vectors=-vectors())
        torch.testing.assert_close(logits(model, ids), first)
        with pytest.raises(ValueError, match=r"must steer layers \(1, 2\)"):
            steering.set(vectors=vectors(layers=(0,)))


def test_two_models_are_steered_at_once(mode):
    a, b = llama(0), llama(1)
    ids = tokens()
    alone = []
    for m, v in ((a, vectors(seed=1)), (b, vectors(seed=2))):
        with es.attach(m, v, mode=mode):
            alone.append(logits(m, ids))
    with es.attach(a, vectors(seed=1), mode=mode), es.attach(b, vectors(seed=2), mode=mode):
        assert torch.equal(logits(a, ids), alone[0]) and torch.equal(logits(b, ids), alone[1])


def test_the_sum_of_vectors_is_both(model, mode):
    a, b = vectors(layers=(1,), seed=1), vectors(layers=(1, 3), seed=2)
    first = with_plain_hooks(model, a, 1.0, torch.ones(2, 7))
    second = with_plain_hooks(model, b, 1.0, torch.ones(2, 7))
    expected = logits(model, tokens())
    for handle in first + second:
        handle.remove()
    with es.attach(model, a + b, mode=mode):
        torch.testing.assert_close(logits(model, tokens()), expected)


def test_output_hidden_states_show_the_steered_states(model, mode):
    ids, v = tokens(), vectors(layers=(1,))
    with torch.no_grad():
        plain = model(ids, output_hidden_states=True).hidden_states
        with es.attach(model, v, mode=mode):
            steered = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(steered[1], plain[1])
    torch.testing.assert_close(steered[2], plain[2] + v.displacement(1))


def test_gradients_pass_through(model, mode):
    ids = tokens()
    embeds = model.get_input_embeddings()(ids).detach()
    embeds.requires_grad_()
    with es.attach(model, vectors(), mode=mode):
        model(inputs_embeds=embeds).logits.sum().backward()
    assert float(embeds.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_model_s_own_type_is_kept(dtype, mode):
    model = llama().to(dtype)
    with es.attach(model, vectors(), strength=0.1, mode=mode):
        out = logits(model, tokens())
    assert out.dtype == dtype and bool(torch.isfinite(out).all())


def test_vectors_of_another_model_are_steered_when_asked():
    with es.attach(llama(), vectors(target={"num_layers": 12}), check_model=False) as steering:
        assert steering.attached
