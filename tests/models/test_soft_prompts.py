"""Models that read more than the text: what stands before it is run, and never taken for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import expertsteer as es
from expertsteer.calibration.divergence import Divergence, neutral_texts
from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.models.decoder import find_decoder
from expertsteer.models.forward import Before, before_text, logits, longest
from expertsteer.models.generation import generate_texts
from expertsteer.models.identity import identity
from expertsteer.models.scoring import choice_probabilities, mean_loss
from helpers.families import WIDTH, build
from helpers.passes import outputs_of
from helpers.steered_models import with_plain_hooks
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

# PEFT asks transformers for what that has renamed, and says what it does of itself.
PEFTS_OWN = "ignore:.*(is_gradient_checkpointing|`past_key_values`|[Pp]osition ids)"
pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings(PEFTS_OWN)]

VIRTUAL = 3
TEXTS = [sentence(length, seed) for seed, length in enumerate((3, 9, 1, 6, 12))]
CONTRAST = ContrastSet.from_texts(TEXTS, [0, 1, 0, 1, 1])


class Prompted(nn.Module):
    """A soft prompt by hand: embeddings before those of the text, or, wrongly, behind them."""

    def __init__(self, model, behind=False):
        super().__init__()
        self.inner, self.config, self.behind = model, model.config, behind
        self.soft = nn.Parameter(torch.randn(VIRTUAL, WIDTH))

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask, **kwargs):
        soft = self.soft.expand(len(input_ids), -1, -1)
        seen = attention_mask.new_ones(len(input_ids), VIRTUAL)
        parts = [(soft, seen), (self.get_input_embeddings()(input_ids), attention_mask)]
        embeds, masks = zip(*(reversed(parts) if self.behind else parts))
        return self.inner(
            inputs_embeds=torch.cat(embeds, 1), attention_mask=torch.cat(masks, 1), **kwargs
        )


def by_peft(model, kind):
    peft = pytest.importorskip(
        "peft", reason="soft prompts of PEFT need peft", exc_type=ImportError
    )
    options = {"task_type": "CAUSAL_LM"}
    if kind != "lora":
        options["num_virtual_tokens"] = VIRTUAL
    config = {
        "prompt tuning": lambda: peft.PromptTuningConfig(**options),
        "p-tuning": lambda: peft.PromptEncoderConfig(**options, encoder_hidden_size=16),
        "prefix tuning": lambda: peft.PrefixTuningConfig(**options),
        "lora": lambda: peft.LoraConfig(
            **options, target_modules=["q_proj"], init_lora_weights=False
        ),
    }[kind]()
    return peft.get_peft_model(model, config)


KINDS = ("by hand", "prompt tuning", "p-tuning", "prefix tuning", "lora")
SHOWN = {"by hand": VIRTUAL, "prompt tuning": VIRTUAL, "p-tuning": VIRTUAL}


@pytest.fixture
def inner():
    return build("llama")


@pytest.fixture(params=KINDS)
def model(request, inner):
    torch.manual_seed(0)
    made = Prompted(inner) if request.param == "by hand" else by_peft(inner, request.param)
    made.kind, made.shown = request.param, SHOWN.get(request.param, 0)
    return made.eval()


def run(model, text):
    """What a pass over one text gives: logits and layers' outputs ``[L, T, D]``, at the text."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad(), outputs_of(find_decoder(model).layers) as seen:
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return scores[model.shown :], torch.stack(seen)[:, 0, model.shown :], ids[0]


def test_what_stands_before_a_text_is_seen(model):
    cached = VIRTUAL if model.kind == "prefix tuning" else 0
    assert before_text(model) == Before(model.shown, cached)
    assert longest(model) == 64 - model.shown - cached


def test_states_are_those_of_the_model_as_it_runs(model):
    alone = [run(model, text)[1] for text in TEXTS]
    of = {"last": lambda s: s[:, -1], 0: lambda s: s[:, 0], "mean": lambda s: s.mean(dim=1)}
    for position, choose in of.items():
        came = es.capture(model, tiny_tokenizer(), CONTRAST, position=position, batch_size=3)
        expected = torch.stack([choose(states) for states in alone], dim=1)
        torch.testing.assert_close(came.states, expected, rtol=1e-4, atol=1e-5)


def test_losses_and_choices_are_read_at_the_text(model):
    tokenizer = tiny_tokenizer()
    losses = []
    for text in TEXTS:
        scores, _, ids = run(model, text)
        losses.append(nn.functional.cross_entropy(scores[:-1].double(), ids[1:]))
    came = mean_loss(model, tokenizer, TEXTS, batch_size=3)
    torch.testing.assert_close(came, torch.stack(losses), rtol=1e-4, atol=1e-5)
    scores, choices = run(model, "w1 w2")[0][-1], [" w3", " w4"]
    expected = scores[tokenizer.convert_tokens_to_ids(["w3", "w4"])].double().softmax(0)
    came = choice_probabilities(model, tokenizer, ["w1 w2"], choices)[0]
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", ["kl", "perplexity_ratio"])
def test_divergence_is_that_of_the_predictions_at_the_text(model, measure):
    vectors = es.SteeringVectors({1: torch.randn(WIDTH)}, {1: 0.5})
    neutral = neutral_texts(model, TEXTS, tiny_tokenizer(), least=2)
    divergence = Divergence(model, neutral, measure, 2, 6)
    with es.attach(model, vectors, strength=1.0, mode="slot") as steering:
        came = divergence(steering, 0, [0.5, 1.0])
    plain = [run(model, text) for text in TEXTS]
    for strength, value in zip((0.5, 1.0), came):
        handles = with_plain_hooks(model, vectors, strength, torch.ones(1, 1))
        total, count = 0.0, 0
        for text, (before, _, ids) in zip(TEXTS, plain):
            a, b = before.double().log_softmax(-1), run(model, text)[0].double().log_softmax(-1)
            if measure == "kl":
                total, count = total + (a.exp() * (a - b)).sum(), count + len(ids)
            else:
                change = (a - b)[:-1].gather(1, ids[1:, None])
                total, count = total + change.sum(), count + len(ids) - 1
        for handle in handles:
            handle.remove()
        assert value == pytest.approx(float(total) / count, rel=1e-3, abs=1e-6)


def test_texts_are_written_in_a_batch_as_alone(model):
    if not hasattr(model, "generate"):
        pytest.skip("this wrapper does not generate")
    tokenizer = tiny_tokenizer()
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    alone = [generate_texts(model, tokenizer, [row], max_new_tokens=6)[0] for row in rows]
    assert generate_texts(model, tokenizer, rows, max_new_tokens=6) == alone


def test_a_text_has_less_room_behind_a_soft_prompt(model):
    room = longest(model)
    long = ContrastSet.from_texts([sentence(room - 1), sentence(room)], [0, 1])  # and <s>
    with pytest.raises(ValueError, match=f"example 1 has {room + 1} tokens.* allows {room} "):
        es.capture(model, tiny_tokenizer(), long)
    neutral = neutral_texts(model, list(long.texts), tiny_tokenizer())
    assert neutral.truncated == 1 and max(map(len, neutral.rows)) == room


def test_the_harness_reads_and_writes_at_the_text(model):
    pytest.importorskip("lm_eval", reason="needs lm-eval", exc_type=ImportError)
    from lm_eval.api.instance import Instance

    from expertsteer.evaluation.live_harness import live_harness

    if not hasattr(model, "generate"):
        pytest.skip("the harness takes models of transformers and PEFT")
    tokenizer = tiny_tokenizer()
    for plain in (True, False):
        harness = live_harness(model, tokenizer, 4, plain=plain, progress=False)
        pairs = [(text, " w5 w9") for text in TEXTS]
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        for (text, _), (value, _) in zip(pairs, harness.loglikelihood(requests)):
            scores, _, ids = run(model, f"{text} w5 w9")
            expected = scores.log_softmax(-1)[[-3, -2], ids[-2:]].sum()
            assert value == pytest.approx(float(expected), rel=1e-4)
    settings = {"until": ["never"], "max_gen_toks": 5, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, settings), 0) for text in TEXTS]
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    expected = generate_texts(model, tokenizer, rows, max_new_tokens=5)
    assert [t.strip() for t in harness.generate_until(requests)] == [e.strip() for e in expected]


def test_a_capture_is_not_resumed_with_another_adapter(inner, tmp_path):
    inner.save_pretrained(tmp_path / "base")
    inner.config._name_or_path = str(tmp_path / "base")
    prints = {identity(inner)["fingerprint"]}
    for kind in ("prompt tuning", "lora"):
        for seed in (0, 1):
            torch.manual_seed(seed)
            adapted = by_peft(build("llama"), kind)
            adapted.config._name_or_path = inner.config._name_or_path
            prints.add(identity(adapted)["fingerprint"])
            assert identity(adapted) == identity(adapted)
    assert len(prints) == 5


def test_what_stands_behind_the_text_is_refused(inner):
    model, ids = Prompted(inner, behind=True).eval(), torch.tensor([[1, 7, 9]])
    with pytest.raises(ValueError, match="run over 3 positions more than .* cannot be told"):
        es.capture(model, tiny_tokenizer(), CONTRAST)
    with pytest.raises(ValueError, match="run over 3 positions more than .* cannot be told"):
        logits(model, ids, torch.ones_like(ids))


def test_hooks_around_a_model_run_when_its_states_are_read(inner):
    """What a user put around the model belongs to it."""
    plain = es.capture(inner, tiny_tokenizer(), CONTRAST).states

    def shift(module, args, kwargs):
        ids = kwargs["input_ids"]
        return args, kwargs | {"input_ids": torch.where(ids > 4, ids - 1, ids)}

    inner.register_forward_pre_hook(shift, with_kwargs=True)
    alone = [run_plain(inner, text) for text in TEXTS]
    came = es.capture(inner, tiny_tokenizer(), CONTRAST).states
    torch.testing.assert_close(came, torch.stack(alone, 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(came, plain, atol=1e-2)


def run_plain(model, text):
    model.shown = 0
    return run(model, text)[1][:, -1]
