"""The models and captures that methods are compared on."""

import pytest

import expertsteer as es
from expertsteer.calibration.calibrating import BudgetError, calibrated
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer


@pytest.fixture(scope="module")
def world():
    """A target, its tokenizer, and captures of it, an expert as wide and a narrow one."""
    tokenizer = tiny_tokenizer()
    texts = [sentence(5 + i % 3, seed=i) for i in range(40)]
    contrast = es.ContrastSet.from_texts(texts, [i % 2 for i in range(40)])
    target = build("llama", layers=2).eval()
    experts = [build("gpt2", layers=2, width=w, seed=1).eval() for w in (32, 16)]
    states = [es.capture(m, tokenizer, contrast, progress=False) for m in (target, *experts)]
    return target, tokenizer, states


@pytest.fixture
def no_strength_of_methods(monkeypatch):
    """No strength of a fitted method meets the budget; those of random directions may."""

    def picky(divergence, vectors, searching):
        if "method" in vectors.metadata:  # fitted, not random
            raise BudgetError("none")
        return calibrated(divergence, vectors, searching)

    monkeypatch.setattr("expertsteer.evaluation.equal_price.calibrated", picky)
