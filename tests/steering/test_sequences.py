"""Which sequence a pass of ``generate`` goes on with: branches, copies and texts read again."""

import copy

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor

import expertsteer as es
from helpers.steered_models import cache_name, hooks_that_choose, llama, steps, tokens, vectors

pytestmark = pytest.mark.transformers

PROMPT = 7


def placed(spans, choose):
    """For hooks on two layers: ``choose(places)`` in passes that begin at these places."""
    seen = [0]

    def of_pass(hidden):
        begin = spans[seen[0] // 2]
        seen[0] += 1
        return choose(torch.arange(hidden.shape[1]) + begin).expand(hidden.shape[:2])

    return of_pass


AROUND = {
    "prompt": lambda places: places < PROMPT,
    "generated": lambda places: places >= PROMPT,
    "last": lambda places: places >= PROMPT - 1,
}


def searching(model, ids):
    """Goes back and forth between copies of the prompt's cache."""
    cache, name, out = DynamicCache(config=model.config), cache_name(model), []
    model(ids, **{name: cache})
    branches = [copy.deepcopy(cache) for _ in range(3)]
    for token, (branch, count) in enumerate([(0, 1), (0, 1), (1, 1), (0, 1), (2, 2), (1, 1)]):
        given = torch.full((len(ids), count), 3 + token)
        out.append(model(given, **{name: branches[branch]}).logits[:, -1])
    return torch.stack(out)


def reading_again(model, ids):
    """Reads the whole text in each pass, which grows by two tokens and shrinks again."""
    out = []
    for more in (0, 2, 4, 1, 2, 0):
        text = torch.cat([ids, torch.full((len(ids), more), 5)], dim=1)
        out.append(model(text, use_cache=False).logits[:, -1])
    return torch.stack(out)


def new_caches(model, ids):
    """Reads the whole text in each pass into a cache of its own."""
    name, out = cache_name(model), []
    for more in range(4):
        text = torch.cat([ids, torch.full((len(ids), more), 5)], dim=1)
        out.append(model(text, **{name: DynamicCache(config=model.config)}).logits[:, -1])
    return torch.stack(out)


LOOPS = {searching: [0, 7, 8, 7, 9, 7, 8], reading_again: [0] * 6, new_caches: [0] * 4}


@pytest.mark.parametrize("positions", AROUND)
@pytest.mark.parametrize("loop", LOOPS)
def test_own_loops_may_copy_caches_and_read_texts_again(loop, positions):
    model, ids = llama(), tokens()

    def run():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            custom_generate=lambda model, input_ids, **unused: loop(model, input_ids),
        )

    try:
        run()
    except (TypeError, ValueError) as reason:
        pytest.skip(f"this transformers takes no loops of one's own: {reason}")
    with hooks_that_choose(model, vectors(), placed(LOOPS[loop], AROUND[positions])):
        want = run()
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", AROUND)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("negative", [PROMPT - 1, PROMPT, PROMPT + 1])
def test_branches_of_guidance_are_told_apart_where_their_lengths_meet(
    negative, use_cache, positions
):
    model, ids = llama(), tokens(1)
    options = {
        "guidance_scale": 2.0,
        "use_cache": use_cache,
        "negative_prompt_ids": torch.cat([ids, ids], dim=1)[:, :negative],  # the text, or more
    }
    lengths, seen = (PROMPT, negative), [0]

    def choose(hidden):
        step, branch = divmod(seen[0] // 2, 2)  # two steered layers; the text's branch goes first
        seen[0] += 1
        begin = lengths[branch] + step - 1 if use_cache and step else 0
        places = torch.arange(hidden.shape[1]) + begin - lengths[branch] + PROMPT
        return AROUND[positions](places).expand(hidden.shape[:2])

    with hooks_that_choose(model, vectors(), choose):
        want = steps(model, ids, **options)
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(steps(model, ids, **options), want, rtol=1e-4, atol=1e-4)


class Setting(LogitsProcessor):
    """Changes a steering while the tokens of these numbers are chosen, counted from 1."""

    def __init__(self, steering, changes):
        self.steering, self.changes, self.calls = steering, changes, 0

    def __call__(self, ids, scores):
        self.calls += 1
        if self.calls in self.changes:
            self.steering.set(**self.changes[self.calls])
        return scores


@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_positions_may_be_set_while_biases_steer_a_generate(mode):
    model, ids, seen = llama(), tokens(), [0]
    changes = {2: {"positions": "generated"}, 4: {"positions": "prompt"}}

    def choose(hidden):
        seen[0] += 1
        return torch.full(hidden.shape[:2], seen[0] <= 8)  # of two layers, the first four passes

    with hooks_that_choose(model, vectors(), choose):
        want = steps(model, ids)
    with es.attach(model, vectors(), mode=mode) as steering:
        got = steps(model, ids, logits_processor=[Setting(steering, changes)])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", ["folded", "silent"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_branches_of_guidance_are_placed_from_the_middle_on(use_cache, before):
    model, ids, negative, seen = llama(), tokens(1), 4, [0]
    options = {
        "guidance_scale": 2.0,
        "use_cache": use_cache,
        "negative_prompt_ids": tokens(1, negative, seed=9),
    }
    change = {"positions": "generated"} if before == "folded" else {"strength": 1.0}

    def choose(hidden):
        step, branch = divmod(seen[0] // 2, 2)
        seen[0] += 1
        place = torch.arange(hidden.shape[1]) + (0 if not use_cache else 99 * (step > 0))
        late = place >= (PROMPT, negative)[branch]
        first = torch.full_like(late, before == "folded")
        return (late if step > 2 else first).expand(hidden.shape[:2])

    with hooks_that_choose(model, vectors(), choose):
        want = steps(model, ids, **options)
    given = {} if before == "folded" else {"strength": 0.0, "positions": "generated"}
    with es.attach(model, vectors(), mode="auto", **given) as steering:
        got = steps(model, ids, logits_processor=[Setting(steering, {3: change})], **options)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_nothing_is_told_of_drafts_and_of_texts_that_end_at_once():
    model, ids = llama(), tokens(1)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 8}
    other = llama(num_hidden_layers=3)
    with (
        es.attach(model, vectors(), positions="generated"),  # a warning would be an error
        es.attach(other, vectors(), positions="generated"),
    ):
        written = model.generate(ids, assistant_early_exit=1, **options)
        drafted = model.generate(ids, assistant_model=other, **options)
        ended = model.generate(ids, eos_token_id=[0, written[0, PROMPT].item()], **options)
    assert written.shape[1] == PROMPT + 8
    assert torch.equal(drafted, written)
    assert ended.shape[1] == PROMPT + 1
