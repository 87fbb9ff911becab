"""Of many settings a few are calibrated: the ones that would have been chosen among all."""

import pytest
import torch

from expertsteer.calibration.calibrating import Searching
from expertsteer.calibration.divergence import neutral_texts
from expertsteer.evaluation import equal_price
from expertsteer.evaluation.equal_price import FINALISTS, EqualPrice, searches
from expertsteer.vectors.vectors import SteeringVectors
from helpers.divergence import one_by_one
from helpers.equal_price import BUDGET, Scorer
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers
LAYERS = 6
NEUTRAL = [sentence(4 + i % 5, seed=i) for i in range(12)]
SUBSETS = [*((layer,) for layer in range(LAYERS)), ()]


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(LAYERS, 32, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    return SteeringVectors(dict(enumerate(directions)))


@pytest.fixture(scope="module")
def priced():
    model, tokenizer = build("llama", layers=LAYERS).eval(), tiny_tokenizer()
    halves = [neutral_texts(model, NEUTRAL[i::2], tokenizer) for i in (0, 1)]
    return EqualPrice(
        model, Scorer(model, tokenizer), "kl", *halves, Searching(BUDGET, most=2, lift=2), 32, {}
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_same_is_chosen_as_among_all(priced, monkeypatch, seed):
    variants = [drawn(seed), -drawn(seed)]
    few = priced.choose(variants, SUBSETS)
    monkeypatch.setattr(equal_price, "MANY", len(variants) * len(SUBSETS))
    every = priced.choose(variants, SUBSETS)
    assert (few.vectors.layers, few.sign, few.strength) == (
        every.vectors.layers,
        every.sign,
        every.strength,
    )
    assert few.tried == every.tried == 14 and few.passes < 0.8 * every.passes
    cost = one_by_one(priced.model, tiny_tokenizer(), few.vectors, few.strength, NEUTRAL[::2])
    assert 0.9 * BUDGET < cost <= BUDGET * (1 + 1e-4)


def test_every_search_is_foretold_and_ticks_once(priced, monkeypatch):
    ticks = []
    monkeypatch.setattr(priced, "on_setting", ticks.append)
    priced.choose([drawn(9), -drawn(9)], SUBSETS)
    assert len(ticks) == searches(14) == 14 + FINALISTS
    ticks.clear()
    priced.choose([drawn(9)], SUBSETS)
    assert len(ticks) == searches(7) == 7
