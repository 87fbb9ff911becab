"""Where a vector is a bias: every family of the table against hooks, and every refusal."""

import copy

import pytest
import torch

from expertsteer.folding.families import FOLDABLE, REFUSED, why_not_foldable
from expertsteer.folding.fold import Fold
from helpers.families import FAMILIES, build, build_or_skip
from helpers.folded_models import (
    EVERY,
    at,
    block,
    fold_all,
    hooked_logits,
    relative_error,
    remove,
    vectors_for,
)
from helpers.steered_models import gpt2, llama, logits

pytestmark = pytest.mark.transformers

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(5))
COVERED = [name for name in FAMILIES if name in FOLDABLE]


@pytest.fixture
def family(request, monkeypatch):
    monkeypatch.setitem(FAMILIES, request.param, EVERY[request.param])
    return build_or_skip(request.param)


def test_every_family_of_the_tables_is_known_to_the_tests():
    assert set(FOLDABLE) <= set(EVERY)
    assert not set(FOLDABLE) & set(REFUSED)


@pytest.mark.parametrize("family", FOLDABLE, indirect=True)
def test_a_folded_vector_is_the_vector_added_at_all_positions(family):
    chosen = vectors_for(family)
    expected, plain = hooked_logits(family, chosen, IDS), logits(family, IDS)
    folds = fold_all(family, chosen)
    assert relative_error(logits(family, IDS), expected) < 1e-5
    assert relative_error(plain, expected) > 1e-2
    remove(folds)
    assert torch.equal(logits(family, IDS), plain)


@pytest.mark.parametrize("family", COVERED, indirect=True)
def test_the_layers_own_output_is_steered(family):
    states = {}
    chosen = vectors_for(family, layers=(1,))
    keep = block(family, 1).register_forward_hook(
        lambda m, i, out: states.update(out=out[0] if isinstance(out, tuple) else out)
    )
    logits(family, IDS)
    before = states["out"].clone()
    folds = fold_all(family, chosen)
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
    folds = fold_all(family, chosen)
    found = logits(family, ids, attention_mask=mask)
    remove(folds)
    real = mask.bool()
    assert relative_error(found[real], expected[real]) < 1e-5


@pytest.mark.parametrize("family", COVERED, indirect=True)
def test_generation_with_a_cache_follows_the_hooks(family):
    chosen = vectors_for(family)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = IDS[:1]
    folds = fold_all(family, chosen)
    answer = family.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    remove(folds)
    scores = hooked_logits(family, chosen, answer)
    for step in range(prompt.shape[1], answer.shape[1]):
        best = scores[0, step - 1].max()
        assert float(best - scores[0, step - 1, answer[0, step]]) < 1e-4 * float(best.abs())


# Where a bias is not the vector.


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in FOLDABLE], indirect=True)
def test_a_family_that_does_not_end_in_a_linear_is_refused_with_the_reason(family):
    name = type(block(family, 1)).__module__.split(".")[2]
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
    class Changed(type(block(llama(), 0))):
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


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"layer: 4 is out of range .*0\.\.3"):
        why_not_foldable(llama(), 4)
