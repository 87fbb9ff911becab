"""A model that is used while vectors are biases in it: trained, written, changed."""

from contextlib import contextmanager

import pytest
import torch

import expertsteer as es
from expertsteer.folding.families import last_linear
from helpers.families import build_or_skip
from helpers.folded_models import fold_all, hooked_logits, relative_error, vectors_for
from helpers.steered_models import gpt2, llama, logits, tokens, vectors, with_plain_hooks

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(5))

# A bias that the linear has belongs to the model.

OWN = ("gpt2", "opt", "bloom", "falcon")


def own_bias(name):
    model = build_or_skip(name)
    linear = last_linear(model, 1)
    if linear.bias is None:
        pytest.skip(f"{name}: its last linear has no bias here")
    return model, linear.bias


@pytest.mark.parametrize("name", OWN)
def test_writing_a_bias_while_it_is_steered_writes_the_bias(name):
    model, bias = own_bias(name)
    chosen, ways = vectors_for(model, layers=(1,)), []
    for write in (
        lambda b: b.data.copy_(torch.linspace(-1, 1, len(b))),
        lambda b: b.data.mul_(3),
        lambda b: b.data.zero_(),
    ):
        fold = fold_all(model, chosen)[0]
        write(bias)
        kept, names = bias.detach().clone(), [n for n, p in model.named_parameters() if p is bias]
        assert torch.equal(model.state_dict()[names[0]], kept)
        ways.append(logits(model, IDS))
        fold.remove()
        assert torch.equal(bias, kept)
        expected = hooked_logits(model, chosen, IDS)
        assert relative_error(ways[-1], expected) < 1e-5
    assert relative_error(ways[0], ways[1]) > 1e-2


@pytest.mark.parametrize("mode", ["fold", "auto", "slot"])
def test_training_while_steered_is_training_with_a_hook(mode):
    """Weight decay takes of the bias, not of the vector."""
    ids = tokens()

    def trained(model, around):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.3)
        with around(model):
            during = []
            for _ in range(3):
                model(ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                during.append({n: t.clone() for n, t in model.state_dict().items()})
        assert all(torch.equal(t, during[-1][n]) for n, t in model.state_dict().items())
        return during[-1]

    @contextmanager
    def hooked(model):
        hooks = with_plain_hooks(model, vectors(), 1.0, torch.ones(ids.shape))
        yield
        for hook in hooks:
            hook.remove()

    expected = trained(gpt2(), hooked)
    found = trained(gpt2(), lambda model: es.attach(model, vectors(), mode=mode))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)


def test_auto_takes_slots_beside_a_bias_and_a_bias_where_there_is_none():
    for model, mode in ((llama(), "fold"), (gpt2(), "slot")):
        with es.attach(model, vectors()) as steering:
            assert steering.mode == mode


# What a fold would no longer steer.


def dropping():
    model = build_or_skip("phi3")
    for layer in model.model.layers:
        layer.resid_mlp_dropout.p = 0.5
    return model


CHANGES = {
    "model.train()": lambda model: model.train(),
    "layer.train()": lambda model: model.model.layers[1].train(),
    "another linear": lambda model: setattr(
        model.model.layers[1].mlp, "down_proj", torch.nn.Linear(48, 32, bias=False)
    ),
    "a bias of its own": lambda model: setattr(
        model.model.layers[1].mlp.down_proj, "bias", torch.nn.Parameter(torch.ones(32))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_bias_no_longer_steers_a_slot_does(change):
    chosen = vectors_for(dropping(), layers=(1,))

    def after(model, steered):
        torch.manual_seed(1)
        CHANGES[change](model)
        torch.manual_seed(3)
        return steered(model)

    expected = after(dropping(), lambda model: hooked_logits(model, chosen, IDS))
    model = dropping()
    with es.attach(model, chosen) as steering:
        assert steering.mode == "fold"
        logits(model, IDS)
        torch.testing.assert_close(after(model, lambda m: logits(m, IDS)), expected)
        assert steering.mode == "slot"
    assert last_linear(model.eval(), 1).bias is None or change == "a bias of its own"
    model = dropping()
    with es.attach(model, chosen, mode="fold"):
        folded = logits(model, IDS)
        CHANGES[change](model)
        message = 'mode="fold" no longer steers this model: layer 1: .*attach with mode="slot"'
        with pytest.raises(RuntimeError, match=message):
            logits(model, IDS)
        if change.endswith("train()"):
            assert torch.equal(logits(model.eval(), IDS), folded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_a_compiled_model_goes_over_to_slots_when_it_is_trained():
    torch._dynamo.reset()
    model = dropping()
    chosen = vectors_for(model, layers=(1,))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with es.attach(compiled, chosen) as steering:
        for train in (False, True, False):
            compiled.train(train)
            torch.manual_seed(3)
            found = logits(compiled, IDS, use_cache=False)
            reference = dropping().train(train)
            torch.manual_seed(3)
            expected = hooked_logits(reference, chosen, IDS, use_cache=False)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert steering.mode == "slot"
    torch._dynamo.reset()


def test_an_adapter_around_the_linear_leaves_the_fold_as_it_is():
    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, states):
            return self.inner(states)

    model = llama()
    with es.attach(model, vectors()) as steering:
        expected = logits(model, tokens())
        mlp = model.model.layers[1].mlp
        mlp.down_proj = Around(mlp.down_proj)
        assert torch.equal(logits(model, tokens()), expected) and steering.mode == "fold"
