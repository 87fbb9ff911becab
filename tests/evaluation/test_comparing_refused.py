"""A comparison names what it cannot measure, and the control that a method does not beat."""

import dataclasses

import pytest
import torch

import expertsteer as es
from expertsteer.evaluation.comparison import UNSTEERED, Comparison, ComparisonRow
from expertsteer.evaluation.methods import OWN
from expertsteer.evaluation.statistics import corrected, paired_test
from helpers.equal_price import NEUTRAL, Scorer

pytestmark = pytest.mark.transformers


def made(values, name, kind="expert"):
    interval = paired_test(values, [0.0] * len(values)).difference
    return ComparisonRow(name, kind, interval, tuple(values), 0.1)


def test_the_verdict_names_the_control_that_is_not_beaten():
    unsteered, best = made([0.0] * 20, UNSTEERED), made([0.0] * 4 + [1.0] * 16, "best random")
    ours = made([1.0] * 18 + [0.0] * 2, "ours")
    tests = {c.name: paired_test(ours.values, c.values) for c in (unsteered, best)}
    ours = dataclasses.replace(ours, against=corrected(tests))
    comparison = Comparison((unsteered, best, ours), (best,), {}, 0.1, "kl", 0, 1.0)
    sentence = comparison.verdict("ours")
    assert sentence.startswith("ours does NOT beat best random") and "unsteered" not in sentence
    assert "cannot tell: best random has the highest score, 1, on all but 4 of 20" in sentence
    with pytest.raises(ValueError, match="name must be one of"):
        comparison.row("theirs")
    with pytest.raises(ValueError, match="what the others are tested against"):
        comparison.verdict(UNSTEERED)


def test_a_method_without_a_strength_is_skipped_and_told(world, no_strength_of_methods):
    target, tokenizer, (own, expert, _) = world
    options = {"methods": list(OWN)[:1], "random": 1, "progress": False}
    score = Scorer(target, tokenizer)
    comparison = es.compare(target, expert, own, score, NEUTRAL, tokenizer, **options)
    assert list(comparison.skipped) == list(OWN)[:1] and len(comparison.rows) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"neutral": ["w1 w2"]}, "at least two texts"),
        ({"neutral": "w1 w2"}, "at least two texts"),
        ({"budget": -1}, "budget must be more than 0"),
        ({"random": 0}, "random must be"),
        ({"prompts": "w1"}, "prompts must be a list"),
        ({"prompts": [""]}, "prompts must be a list"),
        ({"prompts": ["w1 "], "neutral": [[1, 2], [3, 4]]}, "prompts need neutral texts"),
        ({"layers": []}, "layers must be non-empty"),
        ({"layers": [[9]]}, "layers must be non-empty"),
        ({"methods": ["magic"]}, "methods must be some of"),
        ({"score": lambda split, prompt: torch.zeros(())}, "score must return"),
        ({"score": lambda split, prompt: torch.full((5,), float("nan"))}, "finite values"),
        ({"prompts": ["w1 " * 62]}, "longer than the model's context"),
    ],
)
def test_bad_input_is_named(world, change, named):
    target, tokenizer, (own, expert, _) = world
    options = {"methods": list(OWN)[:1], "random": 1, "progress": False, "layers": [[0]]}
    options |= {"neutral": NEUTRAL, "score": Scorer(target, tokenizer)} | change
    neutral, score = options.pop("neutral"), options.pop("score")
    with pytest.raises(ValueError, match=named):
        es.compare(target, expert, own, score, neutral, tokenizer, **options)
