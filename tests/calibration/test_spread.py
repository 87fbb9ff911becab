"""The first strength comes from the states, also where one dimension holds most of their norm."""

import math

import pytest
import torch

import expertsteer as es
from expertsteer.calibration.divergence import Divergence, neutral_texts
from expertsteer.calibration.spread import UNKNOWN, Spread
from helpers.divergence import one_by_one
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

TEXTS = [sentence(length, seed=length) for length in (3, 9, 6, 12, 2)]
ENORMOUS, SIZE = 5, 300.0


def some_vectors(layers=(0, 1), width=32, seed=0, scale=1.0):
    drawn = torch.randn(len(layers), width, generator=torch.Generator().manual_seed(seed))
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    return es.SteeringVectors(dict(zip(layers, unit)), dict.fromkeys(layers, scale))


def with_an_enormous_dimension():
    """As real models have: it holds nearly all of the norm, and the norms' weights read past it."""
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, ENORMOUS] += SIZE
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter *= SIZE / math.sqrt(32)
                parameter[ENORMOUS] = 0.1
        model.lm_head.weight *= 3
    return model


def spread_of(states):
    """What is told of states ``[N, D]``, all in one row."""
    layer = torch.nn.Identity()
    with Spread([layer], len(states)) as spread:
        spread.expect([len(states)])
        layer(states.unsqueeze(0))
    return spread


def test_few_passes_find_the_budget_where_one_dimension_holds_most_of_the_norm():
    model, tokenizer = with_an_enormous_dimension(), tiny_tokenizer()
    ids = torch.tensor([tokenizer(TEXTS[3])["input_ids"]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[2][0]
    norm = float(states.norm(dim=1).median())
    assert (states[:, ENORMOUS].square() / states.square().sum(dim=1)).min() > 0.77
    vectors = some_vectors(scale=norm)
    assert one_by_one(model, tokenizer, vectors, 0.2, TEXTS) > 3
    with pytest.warns(UserWarning, match="lies between strengths"):
        far = es.calibrate(model, vectors, TEXTS, tokenizer, max_passes=4, start=0.2)
    assert far.strength == 1e-4  # only the smallest one that may be tried was within the budget
    for layers in [(0, 1), (1,)]:
        with pytest.warns(UserWarning, match="lies between|largest measured"):  # it is coarse
            few = es.calibrate(model, vectors, TEXTS, tokenizer, max_passes=4, layers=layers)
        many = es.calibrate(model, vectors, TEXTS, tokenizer, layers=layers)
        assert few.passes <= 4 and many.strength / 4 < few.strength < 1.05 * many.strength
        cost = one_by_one(model, tokenizer, vectors.select(layers), few.strength, TEXTS)
        assert 0.1 / 16 < cost <= 0.1001


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("operation", ["add", "remove"])
def test_what_is_found_does_not_depend_on_the_start(family, operation):
    model, vectors = build(family), some_vectors(seed=4)
    options = {"budget": 0.02, "operation": operation}
    found = [
        es.calibrate(model, vectors, TEXTS, tiny_tokenizer(), start=start, **options).strength
        for start in (None, 0.05, 0.2, 1.0)
    ]
    assert max(found) / min(found) <= 1.03


@pytest.mark.parametrize("kept", [True, False])
def test_states_are_read_in_one_pass_for_all_vectors(monkeypatch, kept):
    model, tokenizer = build("llama"), tiny_tokenizer()
    if not kept:
        monkeypatch.setattr("expertsteer.calibration.divergence._KEPT_BYTES", 0)
    texts = neutral_texts(model, TEXTS, tokenizer)
    divergence = Divergence(model, texts, "kl", groups=3, batch_size=8)
    with es.attach(model, some_vectors(), mode="slot") as steering:
        spread = divergence.spread(steering)
        assert divergence.passes == divergence.sweeps == 1
        assert divergence.spread(steering) is spread and divergence.passes == 1
        assert divergence.next_cost == (not kept)
    states = []
    for row in texts.rows:
        with torch.no_grad():
            out = model(torch.tensor([row]), output_hidden_states=True)
        states.append(out.hidden_states[2][0])
    expected = spread_of(torch.cat(states))
    for seed in range(3):
        # Named by the layer that they were read at, and by the only one that is made here.
        one = some_vectors((1,), seed=seed)
        here = es.SteeringVectors({0: one.vectors[1]})
        assert spread.start(one, "add", 0.1) == expected.start(here, "add", 0.1)


def test_the_states_of_a_compiled_model_are_read_and_no_hook_stays_in_it():
    model, vectors = build("llama"), some_vectors()
    texts, starts, prices = neutral_texts(model, TEXTS, tiny_tokenizer()), [], []
    for run in (model, torch.compile(model, backend="eager")):
        divergence = Divergence(run, texts, "kl", groups=2, batch_size=64)
        with es.attach(run, vectors, mode="slot") as steering:
            spread = divergence.spread(steering)
            prices += divergence(steering, 0, [0.1, 0.3])
        starts.append(spread.start(vectors, "add", 0.1))
        assert not spread._kept  # nothing has come since
    torch.compiler.reset()
    assert starts[0] == starts[1] != UNKNOWN
    assert prices[:2] == pytest.approx(prices[2:], rel=1e-4)


def test_a_start_is_of_deviations_whatever_one_dimension_holds():
    states = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    plain, vectors = spread_of(states), some_vectors((0,), 64)
    start = plain.start(vectors, "add", 0.1)
    near = pytest.approx(start, rel=0.5)  # starts are powers of the root of 2
    shifted, noisy, dead = states.clone(), states.clone(), states.clone()
    shifted[:, 7] += 1e4
    noisy[:, 7] = 1e4 + 1e3 * noisy[:, 7]
    dead[:, 7] = 0.0
    dead[0] = 1e5  # one token of enormous states, such as the first of a text
    for other in (shifted, noisy, dead):
        assert spread_of(other).start(vectors, "add", 0.1) == near
    assert plain.start(4 * vectors, "add", 0.1) == pytest.approx(start / 4)
    assert plain.start(vectors, "add", 0.4) == pytest.approx(2 * start)
    assert spread_of(8 * states).start(vectors, "add", 0.1) == pytest.approx(8 * start)


def test_states_that_do_not_differ_tell_nothing():
    vectors = some_vectors((0,), 4)
    for states in (torch.ones(3, 4), torch.full((3, 4), math.inf), torch.ones(1, 4)):
        assert spread_of(states).start(vectors, "add", 0.1) == UNKNOWN
    assert spread_of(torch.randn(3, 4)).start(some_vectors((1,), 4), "add", 0.1) == UNKNOWN
