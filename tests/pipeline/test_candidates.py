"""Layer pairs by what they do: planted experts and targets of which one layer alone is right."""

from dataclasses import replace

import pytest
import torch

import expertsteer as es
from expertsteer.calibration.bracket import STEP
from expertsteer.calibration.calibrating import Searching, searched
from expertsteer.calibration.divergence import Divergence, neutral_texts
from expertsteer.pipeline import candidates, effects
from expertsteer.pipeline.effects import AtHand
from helpers.steered_models import llama
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers
KNOWS, MOVES = 1, 2  # the expert's layer that knows, the target's layer that moves the output
NEUTRAL = [sentence(8, seed=100 + i) for i in range(6)]


@pytest.fixture(scope="module")
def contrast():
    prompts = [sentence(3 + i % 3, seed=i) for i in range(40)]
    return es.ContrastSet.from_pairs([(f"{p} ", "w1", "w2") for p in prompts])


@pytest.fixture(scope="module")
def target():
    """A model whose layer 2 reads the embeddings again: what happened before it is forgotten.

    Its head is its embedding, so a step towards the states of a word makes that word likelier.
    """
    model = llama(vocab_size=64, tie_word_embeddings=True, initializer_range=0.1)
    kept = []
    model.model.embed_tokens.register_forward_hook(lambda m, a, out: kept.append(out))

    def again(module, args, kwargs):
        if args:
            return (kept[-1], *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kept[-1]}

    model.model.layers[MOVES].register_forward_pre_hook(again, with_kwargs=True)
    return model


@pytest.fixture(scope="module")
def captures(contrast, target):
    """The expert's states are noise everywhere, but for a large step at one layer."""
    read = es.capture(target, tiny_tokenizer(), contrast, progress=False, layers=[0, 1, 2])
    noise = torch.randn(3, len(contrast), 16, generator=torch.Generator().manual_seed(0))
    noise[KNOWS, :, 0] += 6.0 * read.labels
    return replace(read, states=noise, layers=(0, 1, 2), model={}), read


def fitted(captures, at_hand=None, **settings):
    options = {"health": False, "null": None, "progress": False} | settings
    pipeline = es.ExpertSteer(**options)
    vectors = pipeline.fit_states(*captures, at_hand=at_hand)
    return pipeline.pairing_, vectors


def test_the_layer_that_knows_is_paired_with_the_layer_that_moves(captures, target, contrast):
    at_hand = AtHand(target, tiny_tokenizer(), contrast, NEUTRAL)
    pairing, vectors = fitted(captures, at_hand, pairs=1)
    assert [pair[:2] for pair in pairing] == [(KNOWS, MOVES)] and vectors.layers == (MOVES,)
    told = {(e, t): value for e, t, value in pairing.effects}
    assert {t for _, t in told} == {0, 1, 2} and told[KNOWS, MOVES] > 0.1
    assert told[KNOWS, 0] == told[KNOWS, 1] == 0.0  # erased, whatever the strength
    assert pairing.expert_auc[KNOWS] > 0.95 > 0.75 > max(pairing.expert_auc[0::2])
    assert pairing.settings["unit"] == "nats" and pairing.settings["held_out"] == 10
    lowest, _ = fitted(captures, pairs=1, rule="lowest")
    assert lowest.pairs[0][:2] != (KNOWS, MOVES)


def test_weak_pairs_are_left_out_unless_their_number_is_given(captures, target, contrast):
    at_hand = AtHand(target, tiny_tokenizer(), contrast, NEUTRAL)
    assert [p.target_layer for p in fitted(captures, at_hand)[0]] == [MOVES]
    asked, _ = fitted(captures, at_hand, pairs=2)
    assert asked.target_layers[0] == MOVES and len(asked) == 2


def test_a_target_that_nothing_moves_is_told(captures, target, contrast):
    expert, read = captures
    at_hand = AtHand(target, tiny_tokenizer(), contrast, NEUTRAL)
    with pytest.warns(UserWarning, match="no layer pair that was tried moves .* is 0 nats"):
        pairing, _ = fitted((expert, read.take(range(len(read)), [0, 1])), at_hand)
    assert len(pairing) == 1  # one at least


def test_an_effect_is_the_change_of_a_plain_difference(captures, target, contrast):
    """Of whole texts: the tokens that both begin with cancel."""
    tokenizer = tiny_tokenizer()
    at_hand = AtHand(target, tokenizer, contrast, NEUTRAL)
    rows = torch.arange(len(contrast))
    _, vectors = fitted(captures, rule="highest", pairs=3)
    one = vectors.select((MOVES,))
    texts = effects.pairs_of_texts(at_hand, captures[1], rows, 0)
    assert len(texts) == effects.PAIRS
    found = effects.effects_of(at_hand, {0: one}, texts, rows, False)[0, MOVES]

    def whole(ids):
        with torch.no_grad():
            scores = target(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return float(scores[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())

    def preference():
        return sum(whole(p[0]) - whole(n[0]) for p, n in texts) / len(texts)

    searching = Searching(0.1, effects.PASSES, tolerance=STEP - 1, lift=2)
    neutral = neutral_texts(target, NEUTRAL, tokenizer, effects.NEUTRAL_TOKENS)
    found_for = searched(Divergence(target, neutral, "kl", searching.per_round, 16), one, searching)
    before = preference()
    with es.attach(target, one, strength=found_for.crossing):
        assert found == pytest.approx(preference() - before, abs=1e-4)


@pytest.mark.parametrize("case", ["states", "texts", "few"])
def test_without_an_effect_the_targets_own_states_decide_and_it_is_said(
    captures, target, contrast, case
):
    at_hand, why = None, "only states"
    if case != "states":
        alone = es.ContrastSet.from_texts(contrast.texts, contrast.labels)
        at_hand, why = AtHand(target, tiny_tokenizer(), alone, NEUTRAL), "begin alike"
        captures = [replace(side, pairs=None) for side in captures]
    if case == "few":
        captures, why = [side.take(range(10)) for side in captures], "too few examples"
    pairing, vectors = fitted(captures, at_hand, pairs=1)
    assert pairing.settings["effect"] == candidates.SEPARATION
    assert why in pairing.settings["why"]
    assert all(0.0 <= value <= 1.0 for *_, value in pairing.effects)
    assert vectors.metadata["pairing"]["effect"] == candidates.SEPARATION
    if case != "few":
        assert pairing.pairs[0].expert_layer == KNOWS


def test_deep_targets_are_tried_evenly():
    assert candidates.evenly(range(10, 20), 4) == list(range(10, 20))
    tried = candidates.evenly(range(48), 4)
    assert len(tried) == 12 and (tried[0], tried[-1]) == (0, 47)
    steps = [b - a for a, b in zip(tried, tried[1:])]
    assert max(steps) - min(steps) <= 1 and len(candidates.evenly(range(48), 6)) == 18
