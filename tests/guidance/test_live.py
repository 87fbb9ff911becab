"""A guided target against one whose states are replaced by hand, text by text."""

import pytest
import torch

from expertsteer.alignment.left_out import left_out_ridge
from expertsteer.guidance.guidance import Guidance
from expertsteer.guidance.knowing import states_of_texts
from expertsteer.guidance.live import guide
from expertsteer.support.tensors import normal_draws
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers
EXPERT, TARGET = (0, 2), (1, 2)
PROMPTS = [sentence(n, seed=n) for n in (3, 6)]
STEPS = 5


@pytest.fixture(scope="module")
def pair():
    target, expert = build("llama").eval(), build("gpt2", width=16, seed=1).eval()
    tokenizer = tiny_tokenizer()
    x = states_of_texts(expert, tokenizer, [sentence(2 + i % 5, seed=i) for i in range(30)], EXPERT)
    x = x.transpose(0, 1).flatten(1)
    goals = [4 * normal_draws(30, 32, seed=layer) for layer in TARGET]
    found = left_out_ridge(x, goals, penalties=[0.01])
    guidance = Guidance.of_maps(EXPERT, dict(zip(TARGET, (one.map for one in found))))
    return target, expert, guidance


def guided(pair, **options):
    target, expert, guidance = pair
    words = {"target_tokenizer": tiny_tokenizer(), "expert_tokenizer": tiny_tokenizer()}
    return guide(target, guidance, expert, **words | options)


def by_hand(pair, prompt, strength=1.0):
    """Greedy tokens of one text without any cache, states replaced by plain hooks."""
    target, expert, guidance = pair
    tokenizer = tiny_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    first = len(ids) - 1
    for _ in range(STEPS):
        texts = [
            tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(first, len(ids))
        ]
        wanted = guidance(states_of_texts(expert, tokenizer, texts, EXPERT))

        def hook(place, wanted=wanted):
            def replace(module, args, output):
                hidden = output[0] if isinstance(output, tuple) else output
                own = hidden[0, first:]
                hidden[0, first:] = own + strength * (wanted[place] - own)
                return output

            return replace

        layers = [target.model.layers[layer] for layer in TARGET]
        handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
        with torch.no_grad():
            scores = target(torch.tensor([ids]), use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        ids.append(int(scores.argmax()))
    return ids[first + 1 :]


def batch(texts, side="left"):
    tokenizer = tiny_tokenizer(side)
    return tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)


def write(target, texts, **options):
    inputs = batch(texts)
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False} | options
    out = target.generate(**inputs, pad_token_id=0, **settings)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_batch_is_written_as_each_text_by_hand(pair, strength):
    with guided(pair, strength=strength):
        found = write(pair[0], PROMPTS)
    expected = [by_hand(pair, prompt, strength) for prompt in PROMPTS]
    for one, other in zip(found, expected):
        ended = other.index(2) if 2 in other else STEPS  # </s>, which generate holds off
        assert one[:ended] == other[:ended] and ended > 0
    assert found != write(pair[0], PROMPTS)


def test_beams_take_their_texts_along(pair):
    with guided(pair) as live:
        several = write(pair[0], PROMPTS, num_beams=3)
        alone = [write(pair[0], [prompt], num_beams=3)[0] for prompt in PROMPTS]
        assert several == alone
        assert live.reading.read > 0


def test_a_cache_or_none_is_the_same(pair):
    with guided(pair):
        assert write(pair[0], PROMPTS) == write(pair[0], PROMPTS, use_cache=False)


def test_without_strength_it_is_the_model_bit_for_bit(pair):
    target, inputs = pair[0], batch(PROMPTS)
    with torch.no_grad():
        before = target(**inputs).logits
        with guided(pair, strength=0.0) as live:
            assert torch.equal(target(**inputs).logits, before)
            assert live.reading.read == 0
        assert torch.equal(target(**inputs).logits, before)
    assert not vars(target).keys() & {"generate", "prepare_inputs_for_generation"}


def test_a_pass_over_whole_texts_is_guided_from_the_prompt_on(pair):
    target = pair[0]
    inputs = batch(PROMPTS, "right")
    lengths = inputs["attention_mask"].sum(1).tolist()
    with torch.no_grad(), guided(pair) as live:
        last = target(**inputs, use_cache=False).logits
        live.prompt_length = 3
        later = target(**inputs, use_cache=False).logits
        plain_strength, live.strength = live.strength, 0.0
        plain = target(**inputs, use_cache=False).logits
    assert plain_strength == 1.0
    for row, length in enumerate(lengths):
        assert torch.equal(last[row, : length - 1], plain[row, : length - 1])
        assert not torch.allclose(last[row, length - 1], plain[row, length - 1])
        assert torch.equal(later[row, :2], plain[row, :2])
        assert not torch.allclose(later[row, 2], plain[row, 2])


def test_a_cache_whose_text_is_unknown_is_refused(pair):
    target, inputs = pair[0], batch(PROMPTS[:1])
    cache = target(**inputs, use_cache=True).past_key_values
    with guided(pair), pytest.raises(RuntimeError, match="cannot be known"):
        target(torch.tensor([[5]]), past_key_values=cache)


def test_what_cannot_be_guided_is_refused(pair):
    with pytest.raises(ValueError, match="share from 0 to 1"), guided(pair, strength=2.0):
        pass
    with guided(pair), pytest.raises(ValueError, match="guided already"), guided(pair):
        pass
    shallow = build("llama", layers=2), *pair[1:]
    with pytest.raises(ValueError, match="the model has 2"), guided(shallow):
        pass
