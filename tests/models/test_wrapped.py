"""Models inside something else, or of another kind: unwrapped, or refused with a way out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

import expertsteer as es
from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.folding.families import why_not_foldable
from expertsteer.folding.permanent import fold_permanently
from expertsteer.models.decoder import DecoderNotFoundError, find_decoder
from expertsteer.models.description import describe, hidden_size
from expertsteer.models.generation import generate_texts
from expertsteer.models.loading import load
from expertsteer.models.scoring import mean_loss
from helpers.families import LAYERS, VOCABULARY, WIDTH
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

TEXTS = [sentence(length, seed) for seed, length in enumerate((3, 9, 2, 6))]
CONTRAST = ContrastSet.from_texts(TEXTS, [0, 1, 0, 1])
IDS = torch.tensor([[1, 7, 9, 30], [1, 12, 5, 8]])


def vectors():
    return es.SteeringVectors({1: torch.randn(WIDTH)}, {1: 2.0})


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(params=["DataParallel", "DistributedDataParallel", "both"])
def wrapped(request, model):
    if request.param == "DataParallel":
        return nn.DataParallel(model)
    request.getfixturevalue("group")
    inside = nn.parallel.DistributedDataParallel(model)
    return inside if request.param == "DistributedDataParallel" else nn.DataParallel(inside)


@pytest.mark.filterwarnings("ignore:.*DataParallel:UserWarning")
def test_a_model_shared_out_over_devices_is_the_model_inside(wrapped, model):
    tokenizer = tiny_tokenizer()
    assert find_decoder(wrapped) == find_decoder(model) and describe(wrapped) == describe(model)
    assert hidden_size(wrapped) == WIDTH
    came = es.capture(wrapped, tokenizer, CONTRAST)
    assert torch.equal(came.states, es.capture(model, tokenizer, CONTRAST).states)
    assert torch.equal(mean_loss(wrapped, tokenizer, TEXTS), mean_loss(model, tokenizer, TEXTS))
    rows = IDS.tolist()
    written = [generate_texts(m, tokenizer, rows, max_new_tokens=4) for m in (wrapped, model)]
    assert written[0] == written[1]
    assert why_not_foldable(wrapped, 1) is None
    assert load(wrapped, tokenizer)[0] is wrapped


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_model_inside_a_wrapper_is_steered(wrapped, model, mode):
    given = vectors()
    with es.attach(model, given, mode=mode):
        expected = model(IDS).logits
    with es.attach(wrapped, given, mode=mode), torch.no_grad():
        assert torch.equal(wrapped(IDS).logits, expected)
    found = es.calibrate(wrapped, given, TEXTS, tiny_tokenizer(), budget=0.1)
    assert found == es.calibrate(model, given, TEXTS, tiny_tokenizer(), budget=0.1)


def test_copies_made_at_every_pass_are_refused(model):
    copied = nn.DataParallel(model)
    copied.device_ids = [0, 1]
    for inside in (copied, nn.DataParallel(copied)):
        with pytest.raises(ValueError, match=r"DataParallel over devices \[0, 1\].*model.module"):
            es.attach(inside, vectors())
    es.attach(copied.module, vectors()).detach()


class Holder(nn.Module):
    """A module around a model, with a forward of its own."""

    def __init__(self, model):
        super().__init__()
        self.inner = nn.ModuleDict({"language": model})

    def forward(self, **inputs):
        return self.inner["language"](**inputs)


def test_a_holder_is_read_as_it_runs_and_steered_through_the_model_inside(model):
    holder, given = Holder(model), vectors()
    came = es.capture(holder, tiny_tokenizer(), CONTRAST)
    assert torch.equal(came.states, es.capture(model, tiny_tokenizer(), CONTRAST).states)
    way = "Holder does not tell its width; .* model.inner.language, a LlamaForCausalLM"
    with pytest.raises(ValueError, match=way):
        es.attach(holder, given)
    unsteered = holder(input_ids=IDS).logits
    with es.attach(holder.get_submodule("inner.language"), given):
        assert not torch.allclose(holder(input_ids=IDS).logits, unsteered)


class Bare(nn.Module):
    """Blocks and nothing that tells about them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return (hidden,)


def test_a_module_without_a_configuration_is_told_which_one_to_give(model):
    bare, given = Bare(), vectors()
    with pytest.raises(ValueError, match="model.config = types.SimpleNamespace"):
        es.attach(bare, given)
    bare.config = SimpleNamespace(hidden_size=WIDTH)
    expected = bare.blocks[2](
        bare.blocks[1](bare.blocks[0](bare.embed(IDS))) + given.displacement(1)
    )
    with es.attach(bare, given):
        torch.testing.assert_close(bare(IDS)[0], expected)


@pytest.mark.parametrize(
    "given, way",
    [
        ("a/name", "came str; load it first"),
        (SimpleNamespace(model=nn.Linear(1, 1)), "came SimpleNamespace; pass the model inside it"),
    ],
)
def test_what_is_no_model_is_refused(given, way):
    for use in (
        lambda: es.attach(given, vectors()),
        lambda: es.capture(given, tiny_tokenizer(), CONTRAST),
        lambda: mean_loss(given, tiny_tokenizer(), TEXTS),
    ):
        with pytest.raises(ValueError, match=f"model must be a torch.nn.Module, {way}"):
            use()


def bart(kind="BartForConditionalGeneration"):
    import transformers

    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, **heads,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS)
    return T5ForConditionalGeneration(config).eval()


def speech():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sides, numbers = ("encoder", "decoder"), ("layers", "ffn_dim", "attention_heads")
    sizes = {f"{side}_{number}": 2 for side in sides for number in numbers}
    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, num_mel_bins=4, pad_token_id=0, **sizes
    )
    return WhisperForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    "make, path",
    [(bart, "model.decoder.layers"), (t5, "decoder.block"), (speech, "model.decoder.layers")],
)
def test_encoder_decoders_are_refused_whatever_path_is_named(make, path, tmp_path):
    model, tokenizer, given = make(), tiny_tokenizer(), vectors()
    for use in (
        lambda: es.attach(model, given),
        lambda: es.attach(model, given, decoder_layers=path),
        lambda: es.capture(model, tokenizer, CONTRAST),
        lambda: es.capture(model, tokenizer, CONTRAST, decoder_layers=path),
        lambda: es.capture_to(tmp_path / "states", model, tokenizer, CONTRAST),
        lambda: es.calibrate(model, given, TEXTS, tokenizer),
        lambda: fold_permanently(model, given, decoder_layers=path),
        lambda: why_not_foldable(model, 1),
        lambda: mean_loss(model, tokenizer, TEXTS),
        lambda: generate_texts(model, tokenizer, IDS.tolist(), max_new_tokens=2),
    ):
        with pytest.raises(DecoderNotFoundError, match=f"{type(model).__name__} is an encoder-dec"):
            use()
    assert describe(model)["architecture"] == type(model).__name__


def test_the_decoder_of_such_a_family_alone_is_a_language_model():
    model, given = bart("BartForCausalLM"), vectors()
    assert es.capture(model, tiny_tokenizer(), CONTRAST).states.shape == (LAYERS, 4, WIDTH)
    with es.attach(model, given), torch.no_grad():
        assert torch.isfinite(model(IDS).logits).all()
