"""Folded steering: a vector as a bias is the vector added by a hook, and leaves no trace."""

import copy
import pickle

import pytest
import torch

from expertsteer._foldable import FOLDABLE, REFUSED, last_linear, why_not_foldable
from expertsteer._folding import Fold
from expertsteer.models import find_decoder
from families import FAMILIES, build, build_or_skip
from folding import EVERY, at, hooked_logits, relative_error, vectors_for
from steering import gpt2, llama, logits, tokens, vectors

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(5))
COVERED = [name for name in FAMILIES if name in FOLDABLE]
WITHOUT_BIAS = {"llama": "mlp.down_proj", "mamba": "mixer.out_proj", "falcon": "mlp.dense_4h_to_h"}
WITH_BIAS = {"gpt2": "mlp.c_proj", "bloom": "mlp.dense_4h_to_h", "opt": "fc2"}


@pytest.fixture
def family(request, monkeypatch):
    monkeypatch.setitem(FAMILIES, request.param, EVERY[request.param])
    return build_or_skip(request.param)


def folded(model, steering_vectors):
    folds = [Fold(model, layer) for layer in steering_vectors.layers]
    for fold in folds:
        fold.write(steering_vectors.displacement(fold.layer))
    return folds


def remove(folds):
    for fold in folds:
        fold.remove()


# Every family of the table is built and compared.


def test_every_family_of_the_tables_is_known_to_the_tests():
    assert set(FOLDABLE) <= set(EVERY)
    assert not set(FOLDABLE) & set(REFUSED)


@pytest.mark.parametrize("family", FOLDABLE, indirect=True)
def test_a_folded_vector_is_the_vector_added_at_all_positions(family):
    chosen = vectors_for(family)
    expected, plain = hooked_logits(family, chosen, IDS), logits(family, IDS)
    folds = folded(family, chosen)
    assert relative_error(logits(family, IDS), expected) < 1e-5
    assert relative_error(plain, expected) > 1e-2
    remove(folds)
    assert torch.equal(logits(family, IDS), plain)


@pytest.mark.parametrize("family", COVERED, indirect=True)
def test_the_layers_own_output_is_steered(family):
    states = {}
    chosen = vectors_for(family, layers=(1,))
    keep = _block(family, 1).register_forward_hook(
        lambda m, i, out: states.update(out=out[0] if isinstance(out, tuple) else out)
    )
    logits(family, IDS)
    before = states["out"].clone()
    folds = folded(family, chosen)
    logits(family, IDS)
    keep.remove()
    remove(folds)
    added = states["out"] - before
    expected = chosen.displacement(1).expand_as(added)
    scale = float(before.abs().max())
    torch.testing.assert_close(added, expected, rtol=0, atol=4e-6 * scale)


@pytest.mark.parametrize("family", COVERED, indirect=True)
def test_padding_on_the_left_changes_nothing_for_real_tokens(family):
    chosen = vectors_for(family)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    ids = IDS * mask
    expected = hooked_logits(family, chosen, ids, mask, attention_mask=mask)
    folds = folded(family, chosen)
    found = logits(family, ids, attention_mask=mask)
    remove(folds)
    real = mask.bool()
    assert relative_error(found[real], expected[real]) < 1e-5


@pytest.mark.parametrize("family", COVERED, indirect=True)
def test_generation_with_a_cache_follows_the_hooks(family):
    chosen = vectors_for(family)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = IDS[:1]
    folds = folded(family, chosen)
    answer = family.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    remove(folds)
    scores = hooked_logits(family, chosen, answer)
    for step in range(prompt.shape[1], answer.shape[1]):
        best = scores[0, step - 1].max()
        assert float(best - scores[0, step - 1, answer[0, step]]) < 1e-4 * float(best.abs())


# Where a bias is not the vector.


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in FOLDABLE], indirect=True)
def test_a_family_that_does_not_end_in_a_linear_is_refused_with_the_reason(family):
    name = type(_block(family, 1)).__module__.split(".")[2]
    reason = why_not_foldable(family, 1)
    assert reason == f"{name}: {REFUSED[name]}; use mode='slot'"
    with pytest.raises(ValueError, match="layer 1 cannot be folded"):
        Fold(family, 1)


@pytest.mark.parametrize(
    "name, path",
    [
        ("gemma2", "mlp.down_proj"),
        ("gemma3_text", "mlp.down_proj"),
        ("rwkv", "feed_forward.value"),
    ],
)
def test_the_refused_families_would_be_steered_otherwise(name, path):
    model = build_or_skip(name)
    chosen = vectors_for(model, layers=(1,))
    expected = hooked_logits(model, chosen, IDS)
    at(model, 1, path).bias = torch.nn.Parameter(chosen.displacement(1))
    assert relative_error(logits(model, IDS), expected) > 1e-3


def test_opt_with_its_norm_after_the_mlp_is_refused(monkeypatch):
    changed = copy.deepcopy(FAMILIES["opt"])
    changed.options["do_layer_norm_before"] = False
    monkeypatch.setitem(FAMILIES, "opt", changed)
    assert "do_layer_norm_before" in why_not_foldable(build("opt"), 0)


def test_bloom_that_leaves_its_bias_out_is_refused():
    model = build_or_skip("bloom")
    for layer in range(3):
        mlp = at(model, layer, "mlp")
        mlp.pretraining_tp, mlp.slow_but_exact = 2, True
    assert "slow_but_exact" in why_not_foldable(model, 0)


def test_dropout_after_the_linear_refuses_a_model_in_training_mode():
    model = gpt2()
    assert why_not_foldable(model, 0) is None
    assert "dropout of 0.1 follows" in why_not_foldable(model.train(), 0)
    assert why_not_foldable(llama().train(), 0) is None


def test_mamba_in_training_mode_is_refused():
    assert "training kernel" in why_not_foldable(build_or_skip("mamba").train(), 0)


def test_code_that_is_not_transformers_is_unknown():
    class Changed(type(_block(llama(), 0))):
        pass

    model = llama()
    model.model.layers[1].__class__ = Changed
    assert why_not_foldable(model, 1) == "unknown family 'Changed'; use mode='slot'"
    assert why_not_foldable(model, 0) is None


def test_a_linear_of_another_kind_is_refused_by_name():
    class Linear4bit(torch.nn.Linear):
        pass

    model = llama()
    model.model.layers[1].mlp.down_proj.__class__ = Linear4bit
    assert "Linear4bit stands where a plain linear" in why_not_foldable(model, 1)


def test_weights_that_are_quantised_or_not_loaded_are_refused():
    model = llama()
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    assert "quantised" in why_not_foldable(model, 1)
    model.model.layers[2].mlp.down_proj.to("meta")
    assert "'meta'" in why_not_foldable(model, 2)


def test_shared_linears_and_biases_are_refused():
    model = llama()
    model.model.layers[2].mlp.down_proj = model.model.layers[1].mlp.down_proj
    assert "shared" in why_not_foldable(model, 1)
    model = gpt2()
    model.transformer.h[2].mlp.c_proj.bias = model.transformer.h[1].mlp.c_proj.bias
    assert "the bias of its last linear is shared" in why_not_foldable(model, 2)
    assert why_not_foldable(model, 0) is None


def test_one_fold_at_a_time():
    model = llama()
    fold = Fold(model, 1)
    with pytest.raises(ValueError, match="folded already"):
        Fold(model, 1)
    fold.remove()
    Fold(model, 1).remove()


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"layer: 4 is out of range .*0\.\.3"):
        why_not_foldable(llama(), 4)


# Contents change in place, and everything comes back.


@pytest.mark.parametrize("name", WITHOUT_BIAS | WITH_BIAS)
def test_remove_restores_the_module_exactly(name):
    model = build_or_skip(name)
    linear = last_linear(model, 1)
    bias, before = linear.bias, _snapshot(model)
    attributes = {k: list(v) if isinstance(v, dict) else v for k, v in vars(linear).items()}
    fold = Fold(model, 1)
    fold.write(torch.randn(fold.width))
    fold.remove()
    fold.remove()
    assert linear.bias is bias
    assert attributes == {k: list(v) if isinstance(v, dict) else v for k, v in vars(linear).items()}
    _assert_same(_snapshot(model), before)


@pytest.mark.parametrize("name", WITHOUT_BIAS | WITH_BIAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_vector_of_zeros_changes_no_bit(name, dtype):
    model = build_or_skip(name).to(dtype)
    expected = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    fold = Fold(model, 1)
    fresh = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    fold.write(torch.randn(fold.width))
    fold.write(torch.zeros(fold.width))
    written = [logits(model, ids) for ids in (IDS, IDS[:1, :1])]
    assert all(torch.equal(*pair) for pair in zip(fresh + written, expected * 2))


@pytest.mark.parametrize("name", WITHOUT_BIAS | WITH_BIAS)
@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_is_steered_to_its_rounding(name, dtype, error):
    model = build_or_skip(name)
    chosen = vectors_for(model, layers=(1,))
    exact = hooked_logits(model, chosen, IDS)
    unsteered = logits(model, IDS)
    model = model.to(dtype)
    fold = folded(model, chosen)[0]
    assert fold.linear.bias.dtype == dtype
    assert relative_error(logits(model, IDS).float(), exact) < error
    assert relative_error(unsteered, exact) > 3 * error


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_write_keeps_the_storage_and_replaces_what_was_written(build_model):
    model = build_model()
    fold = Fold(model, 1)
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
    fold = Fold(model, 1)
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
    fold = folded(model, chosen)[0]
    model.load_state_dict(weights, assign=assign)
    expected = hooked_logits(fresh, chosen, tokens())
    torch.testing.assert_close(logits(model, tokens()), expected, rtol=1e-4, atol=1e-4)
    fold.remove()
    _assert_same(_snapshot(model), weights)


@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_a_live_steered_model_cannot_be_copied_or_pickled(build_model):
    model = build_model()
    fold = Fold(model, 1)
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
    fold = folded(model, chosen)[0]
    model.double()
    fold.write(chosen.displacement(1))
    found = logits(model, tokens())
    fold.remove()
    torch.testing.assert_close(found, hooked_logits(model, chosen, tokens()))


def test_a_fold_made_in_inference_mode_can_be_written_outside():
    model = llama()
    with torch.inference_mode():
        fold = Fold(model, 1)
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
    fold = Fold(llama().half(), 1)
    fold.write(torch.ones(32))
    with pytest.raises(ValueError, match=message):
        fold.write(wrong)
    assert torch.equal(fold.linear.bias, torch.ones(32, dtype=torch.float16))


def test_nothing_is_written_after_remove():
    fold = Fold(llama(), 1)
    fold.remove()
    with pytest.raises(RuntimeError, match="was removed"):
        fold.write(torch.ones(32))


def test_gradients_pass_through():
    model = llama()
    fold = folded(model, vectors(layers=(1,)))[0]
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
    folds = [Fold(compiled, layer) for layer in chosen.layers]
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


def _block(model, layer):
    return find_decoder(model).layers[layer]


def _snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
