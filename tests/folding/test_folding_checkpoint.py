"""A steered model written for good: stock transformers loads it and gives the steered logits."""

import json

import pytest
import torch

import expertsteer as es
from expertsteer.folding.families import FOLDABLE, why_not_foldable
from expertsteer.folding.fold import Fold
from expertsteer.folding.permanent import CHECKPOINTS, fold_permanently, why_not_permanent
from helpers.checkpoints import load
from helpers.families import weights_type
from helpers.folded_models import (
    CONVERTED_TO,
    VARIANTS,
    build_case,
    hooked_logits,
    relative_error,
    vectors_for,
)
from helpers.steered_models import gpt2, llama, logits, vectors

pytestmark = pytest.mark.transformers

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(5))


def reload(model, folder, **settings):
    model.save_pretrained(folder)
    return load(folder, **settings)


@pytest.mark.parametrize("case", [*CHECKPOINTS, *VARIANTS])
def test_the_reloaded_checkpoint_is_the_steered_model(case, monkeypatch, tmp_path):
    model = build_case(monkeypatch, case)
    chosen = vectors_for(model)
    plain, expected = logits(model, IDS), hooked_logits(model, 0.7 * chosen, IDS)
    permanent = fold_permanently(model, chosen, 0.7)
    assert relative_error(logits(permanent, IDS), expected) < 1e-5
    loaded = reload(permanent, tmp_path)
    assert relative_error(logits(loaded, IDS), expected) < 1e-5
    assert relative_error(plain, expected) > 1e-2
    kind = CONVERTED_TO.get(case)
    assert loaded.config.model_type == (kind or model.config.model_type)
    assert (permanent is model) == (kind is None)
    if kind is not None:  # the model that was given is as before
        assert torch.equal(logits(model, IDS), plain)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_the_reloaded_checkpoint_generates_the_same(case, monkeypatch, tmp_path):
    model = build_case(monkeypatch, case)
    model.generation_config.top_k = 7
    model.generation_config.do_sample = True
    chosen = vectors_for(model)
    permanent = fold_permanently(model, chosen)
    loaded = reload(permanent, tmp_path)
    assert (loaded.generation_config.top_k, loaded.generation_config.do_sample) == (7, True)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded.generation_config, name) == getattr(model.generation_config, name)
    settings = {"max_new_tokens": 8, "do_sample": False, "top_k": None, "eos_token_id": None}
    prompt = IDS[:1, :5]
    mask = torch.ones_like(prompt)
    answer = loaded.generate(prompt, attention_mask=mask, **settings)
    assert torch.equal(answer, permanent.generate(prompt, attention_mask=mask, **settings))


@pytest.mark.parametrize("case", ["llama", "mistral", "phi3", "qwen3", "gpt2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept(case, dtype, monkeypatch, tmp_path):
    # Loaded in that type, as users do: a model that is cast rounds its rotary tables too.
    model = reload(build_case(monkeypatch, case), tmp_path / "plain", **weights_type(dtype))
    permanent = fold_permanently(model, vectors_for(model))
    loaded = reload(permanent, tmp_path / "steered", **weights_type("auto"))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(logits(loaded, IDS), logits(permanent, IDS))


@pytest.mark.parametrize("case", ["llama tied", "qwen2 tied"])
def test_tied_embeddings_stay_tied(case, monkeypatch, tmp_path):
    permanent = fold_permanently(*_model_and_vectors(monkeypatch, case))
    loaded = reload(permanent, tmp_path)
    for model in (permanent, loaded):
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_converted_model_shares_the_weights(monkeypatch):
    model, chosen = _model_and_vectors(monkeypatch, "qwen2")
    permanent = fold_permanently(model, chosen)
    for (name, weight), (other, shared) in zip(
        sorted(model.named_parameters()),
        sorted((n, p) for n, p in permanent.named_parameters() if n in model.state_dict()),
    ):
        assert name == other and weight.data_ptr() == shared.data_ptr()
    assert permanent.training == model.training


def test_the_configuration_of_a_llama_model_says_so(tmp_path):
    fold_permanently(llama(), vectors()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mlp_bias"] is True


def test_a_second_fold_adds_to_the_first():
    model, once, twice = llama(), vectors(layers=(1,)), vectors(layers=(1, 2), seed=8)
    expected = hooked_logits(model, once + twice, IDS % 60)
    model = fold_permanently(fold_permanently(model, once), twice)
    assert relative_error(logits(model, IDS % 60), expected) < 1e-5


def test_a_converted_model_can_be_folded_again(monkeypatch):
    model, chosen = _model_and_vectors(monkeypatch, "qwen3")
    expected = hooked_logits(model, 2.0 * chosen, IDS)
    twice = fold_permanently(fold_permanently(model, chosen), chosen)
    assert relative_error(logits(twice, IDS), expected) < 1e-5


def test_hy_v3_with_experts_is_refused(monkeypatch):
    kinds = {"mlp_layer_types": ["dense", "dense", "sparse"], "num_experts": 4}
    model = build_case(monkeypatch, "hy_v3", **kinds, num_experts_per_tok=2)
    assert "mixture of experts" in why_not_foldable(model, 2)
    with pytest.raises(ValueError, match="its experts have no bias"):
        fold_permanently(model, vectors_for(model, layers=(1,)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_a_compiled_model_is_folded_as_the_model_behind_it():
    model = llama()
    assert fold_permanently(torch.compile(model, backend="eager"), vectors()) is model


# Refusals, after which nothing has changed.


@pytest.mark.parametrize("name", sorted(set(FOLDABLE) - set(CHECKPOINTS)))
def test_a_family_without_a_stock_form_is_refused(name, monkeypatch):
    model = build_case(monkeypatch, name)
    message = f"{name} has no bias there .* the families that work are arcee, "
    with pytest.raises(ValueError, match=message):
        fold_permanently(model, vectors_for(model))


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "rwkv"])
def test_a_family_that_cannot_be_folded_is_refused(name, monkeypatch):
    model = build_case(monkeypatch, name)
    with pytest.raises(ValueError, match=f"layer 0 cannot be folded: {name}: "):
        fold_permanently(model, vectors_for(model))
    assert "cannot be folded" in why_not_permanent(model)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
         "norms of queries and keys, a sliding window"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0,
         "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}, "'longrope' switches by length"),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0,
         "partial_rotary_factor": 0.5}}, "rotates all entries"),
    ],
)  # fmt: skip
def test_what_the_other_family_cannot_express_is_refused(name, changes, message, monkeypatch):
    model = build_case(monkeypatch, name, **changes)
    assert message in why_not_permanent(model)
    with pytest.raises(ValueError, match=message):
        fold_permanently(model, vectors_for(model))


class Adapted(torch.nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, states):
        return self.base_layer(states)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_model_with_adapters_is_refused(name, monkeypatch):
    model, chosen = _model_and_vectors(monkeypatch, name)
    head = model.get_output_embeddings()
    model.set_output_embeddings(Adapted(head))
    with pytest.raises(ValueError, match="lm_head.base_layer.weight.*merge adapters"):
        fold_permanently(model, chosen)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="a LlamaModel has no language model head"):
        fold_permanently(llama().model, vectors())


@pytest.mark.parametrize(
    "wrong, strength, message",
    [
        (vectors(width=8), 1.0, "vectors have width 8, the model's hidden size is 32"),
        (vectors(layers=(0, 4)), 1.0, "layer: 4 is out of range"),
        (vectors(), float("nan"), "strength must be a finite number, came nan"),
        (vectors(), 1e9, "at layer 1: the bias would not be finite in torch.float16"),
        ({1: torch.ones(32)}, 1.0, "vectors must be SteeringVectors, came dict"),
    ],
)
@pytest.mark.parametrize("build_model", [llama, gpt2])
def test_bad_arguments_change_nothing(build_model, wrong, strength, message):
    model = build_model().half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        fold_permanently(model, wrong, strength)
    after = model.state_dict()
    assert list(after) == list(before) and model.config.to_dict() == config
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_model_steered_by_a_live_fold_is_refused():
    model = llama()
    fold = Fold(model, 2).install()
    with pytest.raises(ValueError, match="folded already"):
        fold_permanently(model, vectors())
    fold.remove()
    fold_permanently(model, vectors())


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_model_that_is_steered_is_refused(mode):
    model = llama()
    with (
        es.attach(model, vectors(), mode=mode),
        pytest.raises(ValueError, match="steered at the moment; use Steering.fold"),
    ):
        fold_permanently(model, vectors())
    fold_permanently(model, vectors())


def _model_and_vectors(monkeypatch, case):
    model = build_case(monkeypatch, case)
    return model, vectors_for(model)
