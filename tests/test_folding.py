"""A fold of one layer: its contents change in place, and it leaves no trace."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

import expertsteer as es
from expertsteer._foldable import last_linear
from expertsteer._folding import Fold
from families import build_or_skip
from folding import fold_all, hooked_logits, relative_error, remove, vectors_for
from steering import gpt2, llama, logits, tokens, vectors, with_plain_hooks

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(5))
# One family of every kind of linear, without a bias and with one.
FAMILIES = ("llama", "mamba", "falcon", "gpt2", "bloom", "opt")


@pytest.mark.parametrize("name", FAMILIES)
def test_remove_restores_the_module_exactly(name):
    model = build_or_skip(name)
    linear = last_linear(model, 1)
    bias, before = linear.bias, _snapshot(model)
    attributes = {k: list(v) if isinstance(v, dict) else v for k, v in vars(linear).items()}
    fold = Fold(model, 1).install()
    fold.write(torch.randn(fold.width))
    fold.remove()
    fold.remove()
    assert linear.bias is bias
    assert attributes == {k: list(v) if isinstance(v, dict) else v for k, v in vars(linear).items()}
    _assert_same(_snapshot(model), before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_vector_of_zeros_changes_no_bit(name, dtype):
    model = build_or_skip(name).to(dtype)
    expected = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    fold = Fold(model, 1).install()
    fresh = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    fold.write(torch.randn(fold.width))
    fold.write(torch.zeros(fold.width))
    written = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    assert all(torch.equal(*pair) for pair in zip(fresh + written, expected * 2))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_is_steered_to_its_rounding(name, dtype, error):
    model = build_or_skip(name)
    chosen = vectors_for(model, layers=(1,))
    exact = hooked_logits(model, chosen, IDS)
    unsteered = logits(model, IDS)
    model = model.to(dtype)
    fold = fold_all(model, chosen)[0]
    assert fold.linear.bias.dtype == dtype
    assert relative_error(logits(model, IDS).float(), exact) < error
    assert relative_error(unsteered, exact) > 3 * error


def test_one_fold_at_a_time():
    model = llama()
    fold = Fold(model, 1).install()
    with pytest.raises(ValueError, match="folded already"):
        Fold(model, 1)
    fold.remove()
    Fold(model, 1).install().remove()


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_write_keeps_the_storage_and_replaces_what_was_written(build_model):
    model = build_model()
    fold = Fold(model, 1).install()
    bias, pointer = fold.linear.bias, fold.linear.bias.data_ptr()
    fold.write(torch.full((fold.width,), 7.0))
    chosen = vectors(layers=(1,))
    fold.write(chosen.displacement(1))
    assert fold.linear.bias is bias and bias.data_ptr() == pointer
    found = logits(model, tokens())
    fold.remove()
    expected = hooked_logits(model, chosen, tokens())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_what_is_saved_is_the_unsteered_model(build_model):
    model = build_model()
    before = _snapshot(model)
    fold = Fold(model, 1).install()
    fold.write(torch.randn(fold.width))
    _assert_same(_snapshot(model), before)
    other = build_model()
    other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("build_model", [llama, gpt2])
@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_steered_and_restored(build_model, assign):
    torch.manual_seed(1)
    model, fresh = build_model(), build_model()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights, chosen = _snapshot(fresh), vectors(layers=(1,))
    fold = fold_all(model, chosen)[0]
    model.load_state_dict(weights, assign=assign)
    expected = hooked_logits(fresh, chosen, tokens())
    torch.testing.assert_close(logits(model, tokens()), expected, rtol=1e-4, atol=1e-4)
    fold.remove()
    _assert_same(_snapshot(model), weights)


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_a_live_steered_model_cannot_be_copied_or_pickled(build_model):
    model = build_model()
    fold = Fold(model, 1).install()
    with pytest.raises(ValueError, match="cannot be deep-copied"):
        copy.deepcopy(model)
    with pytest.raises(ValueError, match="cannot be pickled"):
        pickle.dumps(model)
    fold.remove()
    copy.deepcopy(model)


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_a_model_moved_to_another_type_stays_steered(build_model):
    model = build_model()
    chosen = vectors(layers=(1,))
    fold = fold_all(model, chosen)[0]
    model.double()
    fold.write(chosen.displacement(1))
    found = logits(model, tokens())
    fold.remove()
    torch.testing.assert_close(found, hooked_logits(model, chosen, tokens()))


def test_a_fold_made_in_inference_mode_can_be_written_outside():
    model = llama()
    with torch.inference_mode():
        fold = Fold(model, 1).install()
        fold.write(torch.ones(fold.width))
    fold.write(torch.zeros(fold.width))
    assert not fold.linear.bias.any()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (torch.ones(5), r"must be a floating-point tensor \[32\] for layer 1, came \(5,\)"),
        (torch.ones(32, dtype=torch.int64), "came .* of torch.int64"),
        (torch.full((32,), float("nan")), "would not be finite in torch.float16"),
        (torch.full((32,), 1e6), "lower the strength"),
    ],
)
def test_a_wrong_displacement_is_refused_and_changes_nothing(wrong, message):
    fold = Fold(llama().half(), 1).install()
    fold.write(torch.ones(32))
    with pytest.raises(ValueError, match=message):
        fold.write(wrong)
    assert torch.equal(fold.linear.bias, torch.ones(32, dtype=torch.float16))


def test_nothing_is_written_after_remove():
    fold = Fold(llama(), 1).install()
    fold.remove()
    with pytest.raises(RuntimeError, match="was removed"):
        fold.write(torch.ones(32))


def test_gradients_pass_through():
    model = llama()
    fold = fold_all(model, vectors(layers=(1,)))[0]
    model(tokens()).logits.sum().backward()
    assert fold.linear.bias.grad is None
    assert all(p.grad is not None for p in model.parameters())


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
                during.append(_snapshot(model))
        _assert_same(_snapshot(model), during[-1])
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


# Compiled code sees new contents.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
@pytest.mark.parametrize("build_model", [llama, gpt2])
@pytest.mark.parametrize("compiled_first", [True, False])
def test_new_contents_never_recompile(build_model, compiled_first):
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = build_model()
    chosen = vectors(layers=(1, 2))
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    if compiled_first:
        logits(compiled, tokens(), use_cache=False)
    folds = [Fold(compiled, layer).install() for layer in chosen.layers]
    found = []
    for step in range(21):
        for fold in folds:
            fold.write(0.1 * step * chosen.displacement(fold.layer))
        found.append(logits(compiled, tokens(), use_cache=False))
        if step == 0:
            after_attaching = len(graphs)
    assert len(graphs) == after_attaching
    assert after_attaching <= 2
    remove(folds)
    torch._dynamo.reset()
    expected = hooked_logits(model, 2.0 * chosen, tokens(), use_cache=False)
    torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-4)
    assert relative_error(found[0], found[-1]) > 1e-2


def _snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
