"""Where tokens stand: whatever a cache is called, wherever a prompt begins, whoever is asked."""

import inspect

import pytest
import torch
import transformers
from transformers import DynamicCache

import expertsteer as es
from helpers.steered_models import (
    CHOICES,
    cache_name,
    hooks_that_choose,
    llama,
    logits,
    passes_of_one,
    steps,
    tokens,
    vectors,
)

pytestmark = pytest.mark.transformers


def renamed(model, hide):
    """Hand the cache to the decoder as ``memory``, as itself or in a box."""
    decoder, known = model.model, cache_name(model)

    class Box:
        def __init__(self, content):
            self.content = content

    def rename(module, args, kwargs):
        cache = kwargs.pop(known, None)
        return args, kwargs | {"memory": Box(cache) if hide else cache}

    def forward(memory=None, original=decoder.forward, **kwargs):
        return original(**kwargs | {known: memory.content if hide else memory})

    decoder.forward = forward
    decoder.register_forward_pre_hook(rename, with_kwargs=True)
    return model


@pytest.mark.parametrize("positions", CHOICES)
def test_a_cache_is_known_under_any_name(positions):
    model, ids = renamed(llama(), hide=False), tokens()
    with hooks_that_choose(model, vectors(), CHOICES[positions]):
        want = steps(model, ids)
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(steps(model, ids), want)


@pytest.mark.parametrize("positions", CHOICES)
def test_a_cache_that_cannot_be_read_steers_no_wrong_token(positions):
    model, ids = renamed(llama(), hide=True), tokens()
    with hooks_that_choose(model, vectors(), CHOICES[positions]):
        want = steps(model, ids)
    with es.attach(model, vectors(), positions=positions) as steering:
        if "cache_position" in inspect.signature(type(model).forward).parameters:
            torch.testing.assert_close(steps(model, ids), want)  # old releases hand places on
        else:
            told = f"memory.*transformers {transformers.__version__} is installed"
            with pytest.raises(RuntimeError, match=told):
                steps(model, ids)
        steering.set(positions="all")  # no place is needed
        with hooks_that_choose(model, vectors(), lambda h: torch.ones(h.shape[:2])):
            twice = steps(model, ids)
        steering.set(strength=2.0)
        torch.testing.assert_close(steps(model, ids), twice, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", CHOICES)
def test_a_chat_goes_on_with_its_cache_and_the_new_tokens_alone(positions):
    model, ids = llama(), tokens(1, 13)
    release = tuple(map(int, transformers.__version__.split(".")[:2]))
    if release < (5, 0):
        pytest.skip("before transformers 5 generate needs the whole text beside its cache")

    def turn(given):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :9], **{cache_name(model): cache})
        more = {"attention_mask": torch.ones_like(ids), cache_name(model): cache}
        return steps(model, given, **more)

    for given in (ids, ids[:, 9:]):
        with hooks_that_choose(model, vectors(), CHOICES[positions]):
            want = turn(given)
        with es.attach(model, vectors(), positions=positions):
            torch.testing.assert_close(turn(given), want)


@pytest.mark.parametrize("positions", CHOICES)
@pytest.mark.parametrize("negative", [None, 3, 14])
@pytest.mark.parametrize("use_cache", [True, False])
def test_both_branches_of_guidance_have_prompts_of_their_own(positions, negative, use_cache):
    model, ids = llama(), tokens(1)
    options = {"guidance_scale": 2.0, "use_cache": use_cache, "output_scores": True}
    if negative:
        options["negative_prompt_ids"] = tokens(1, negative, seed=9)
    passes, begins = [0], {}

    def choose(hidden):
        passes[0] += 1
        branch = (passes[0] - 1) // 2 % 2  # two steered layers; the text's branch goes first
        place = torch.arange(hidden.shape[1])
        begins.setdefault(branch, hidden.shape[1])
        prompt = place < begins[branch] if not use_cache else (place >= 0) & (passes[0] <= 4)
        return (prompt if positions == "prompt" else ~prompt).expand(hidden.shape[:2])

    def run():
        return torch.stack(
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                return_dict_in_generate=True,
                **options,
            ).scores
        )

    with hooks_that_choose(model, vectors(), choose):
        want = run()
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-4)


def test_the_last_token_of_each_packed_text_is_steered():
    model, ids = llama(), tokens(1, 9)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    ends = torch.tensor([[0, 0, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.bool)
    with hooks_that_choose(model, vectors(), lambda h: ends):
        want = logits(model, ids, position_ids=places)
    with es.attach(model, vectors(), positions="last") as steering:
        torch.testing.assert_close(logits(model, ids, position_ids=places), want)
        steering.set(positions="generated", prompt_length=4)
        with pytest.raises(ValueError, match="several texts are packed"):
            logits(model, ids, position_ids=places)


def test_what_ran_before_anything_was_steered_is_not_taken_for_a_prompt():
    model, ids = llama(), tokens(1)

    class Later(transformers.LogitsProcessor):
        """Sets a strength while the third token is chosen."""

        def __init__(self, steering):
            self.steering, self.calls = steering, 0

        def __call__(self, ids, scores):
            self.calls += 1
            if self.calls == 3:
                self.steering.set(strength=1.0)
            return scores

    seen = [0]

    def choose(hidden):
        seen[0] += 1
        return passes_of_one(hidden) & (seen[0] > 6)  # of two layers, from the fourth pass on

    with hooks_that_choose(model, vectors(), choose):
        want = steps(model, ids)
    with es.attach(model, vectors(), strength=0.0, positions="generated", mode="slot") as steering:
        got = steps(model, ids, logits_processor=[Later(steering)])
    torch.testing.assert_close(got, want)
