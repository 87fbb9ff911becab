"""A fold of one layer: its contents change in place, and it leaves no trace."""

import copy
import pickle

import pytest
import torch

from expertsteer.folding.families import last_linear
from expertsteer.folding.fold import Fold
from helpers.families import build_or_skip
from helpers.folded_models import fold_all, hooked_logits, relative_error, remove, vectors_for
from helpers.steered_models import gpt2, llama, logits, tokens, vectors

pytestmark = pytest.mark.transformers

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
