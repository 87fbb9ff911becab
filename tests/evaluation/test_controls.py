"""Every method at one price: what is chosen where, what is tested, and what is refused."""

import dataclasses
import json

import pytest
import torch

import expertsteer as es
from expertsteer.calibration.calibrating import BudgetError, calibrated
from expertsteer.evaluation.comparison import PROMPT, UNSTEERED, Comparison, ComparisonRow
from expertsteer.evaluation.methods import (
    DEFAULT,
    METHODS,
    OWN,
    SHUFFLED,
    Fitting,
    fit_methods,
    random_directions,
)
from expertsteer.evaluation.statistics import corrected, paired_test
from expertsteer.models.scoring import choice_probabilities, mean_loss
from expertsteer.reporting import terminal as report
from helpers.divergence import one_by_one
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

NEUTRAL = [sentence(length, seed=length) for length in (4, 7, 5, 9)]
BUDGET = 0.05
QUESTIONS = {
    "validation": [sentence(4, seed=s) for s in range(20, 32)],
    "test": [sentence(4, seed=s) for s in range(40, 54)],
}
CHOICES = [" w4", " w7", " w9"]


class Scorer:
    """How often the first choice is on top, and its probability; remembers what was asked."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.asked = model, tokenizer, []

    def __call__(self, split, prompt):
        self.asked.append((split, prompt))
        prompts = [prompt + question for question in QUESTIONS[split]]
        belief = choice_probabilities(self.model, self.tokenizer, prompts, CHOICES)
        return torch.stack([(belief.argmax(dim=1) == 0).double(), belief[:, 0]], dim=1)


@pytest.fixture(scope="module")
def world():
    """A target, its scorer, and captures of two experts (one as wide as the target)."""
    tokenizer = tiny_tokenizer()
    texts = [sentence(5 + i % 3, seed=i) for i in range(40)]
    contrast = es.ContrastSet.from_texts(texts, [i % 2 for i in range(40)])
    target = build("llama", layers=2).eval()
    experts = [build("gpt2", layers=2, width=w, seed=1).eval() for w in (32, 16)]
    states = [es.capture(m, tokenizer, contrast, progress=False) for m in (target, *experts)]
    return target, tokenizer, states


@pytest.fixture(scope="module")
def compared(world):
    target, tokenizer, (own, expert, _) = world
    score = Scorer(target, tokenizer)
    price = lambda prompt: float(mean_loss(target, tokenizer, NEUTRAL, context=prompt).mean())  # noqa: E731
    comparison = es.compare(
        target,
        expert,
        own,
        score,
        NEUTRAL,
        tokenizer,
        budget=BUDGET,
        random=3,
        prompts=["w1 w2 ", "w5 "],
        prices={"loss": price},
        progress=False,
    )
    return comparison, score


def test_every_method_and_control_has_its_row(compared):
    comparison, _ = compared
    names = [row.name for row in comparison.rows]
    assert names[0] == UNSTEERED and names[-1] == PROMPT and set(METHODS) <= set(names)
    assert names[1:3] == ["random directions, mean of 3", "random directions, best of 3"]
    assert not comparison.skipped and len(comparison.random) == 3
    assert comparison.row(UNSTEERED).divergence == 0.0
    for row in comparison.rows:
        assert len(row.values) == 14 and row.prices["loss"] > 0
        assert row.score.mean == pytest.approx(sum(row.values) / 14)
    steered = [row for row in comparison.rows if row.strength is not None]
    assert all(row.tried >= 3 and 0 < row.passes <= 12 * 2 * row.tried for row in steered)
    assert all(0 < row.divergence < 10 * BUDGET for row in steered)


def test_the_test_split_is_asked_once_for_each_reported_row(compared):
    comparison, score = compared
    asked = [prompt for split, prompt in score.asked if split == "test"]
    assert len(asked) == 1 + 3 + len(METHODS) + 1
    assert [prompt for prompt in asked if prompt] == [comparison.row(PROMPT).prompt]


@pytest.mark.parametrize("name", ["target's own mean difference", DEFAULT])
def test_the_chosen_strength_costs_the_budget_and_gives_the_reported_score(world, compared, name):
    target, tokenizer, (own, expert, _) = world
    comparison, score = compared
    row = comparison.row(name)
    fitted, _ = fit_methods(Fitting(expert, own, pairs=2), [name])
    vectors = fitted[name].select(row.layers)
    price = [
        one_by_one(target, tokenizer, vectors, factor * row.strength, texts=NEUTRAL[::2])
        for factor in (1.0, 1.1)
    ]
    assert price[0] <= BUDGET * (1 + 1e-4) and price[1] > BUDGET
    reported = one_by_one(target, tokenizer, vectors, row.strength, texts=NEUTRAL[1::2])
    assert row.divergence == pytest.approx(reported, rel=1e-3)
    with es.attach(target, vectors, strength=row.strength):
        assert score("test", "")[:, 0].tolist() == list(row.values)
        validation = score("validation", "").mean(dim=0).tolist()
    # No other layers do better on validation at the budget.
    for layers in ((0,), (1,), (0, 1)):
        other = fitted[name].select(layers)
        strength = es.calibrate(target, other, NEUTRAL[::2], tokenizer, budget=BUDGET).strength
        with es.attach(target, other, strength=strength):
            rank = score("validation", "").mean(dim=0).tolist()
        assert rank[0] <= validation[0]
        assert rank[0] < validation[0] or rank[1] <= validation[1] + 1e-3


def test_a_method_with_few_layers_is_tried_at_all_of_its_own(world):
    target, tokenizer, (own, expert, _) = world
    score, names = Scorer(target, tokenizer), ["expert: Procrustes, random pairs"]
    options = {"methods": names, "pairs": 1, "random": 1, "progress": False}
    comparison = es.compare(target, expert, own, score, NEUTRAL, tokenizer, **options)
    assert comparison.row(names[0]).tried == 1 and comparison.random[0].tried == 2 * 3


def test_a_prompts_price_is_that_of_the_texts_behind_it(world, compared):
    target, tokenizer, _ = world
    row = compared[0].row(PROMPT)
    total = count = 0
    for text in NEUTRAL[1::2]:
        ids, long = (tokenizer(t)["input_ids"] for t in (text, row.prompt + text))
        with torch.no_grad():
            before, after = (
                target(torch.tensor([x])).logits[0].double().log_softmax(-1) for x in (ids, long)
            )
        after = after[-len(ids) :]
        total += float((before.exp() * (before - after)).sum())
        count += len(ids)
    assert row.divergence == pytest.approx(total / count, rel=1e-3)
    assert row.extra_tokens == len(row.prompt.split())
    if not row.within:
        assert "costs more than the budget" in compared[0].verdict(PROMPT)


def test_tests_are_corrected_as_one_family(compared):
    comparison, _ = compared
    tested = [row for row in comparison.rows if row.against]
    assert {row.name for row in tested} == {*METHODS, PROMPT}
    best = comparison.rows[2]
    tests = {}
    for row in tested:
        for control in (comparison.rows[0], best):
            tests[row.name, control.name] = paired_test(row.values, control.values)
    for (name, control), test in corrected(tests).items():
        assert comparison.row(name).against[control] == test
        assert test.family == 2 * len(tested)


def test_random_directions_are_summed_up(compared):
    comparison, _ = compared
    scores = sorted(row.score.mean for row in comparison.random)
    mean, best = comparison.rows[1:3]
    assert mean.score.mean == pytest.approx(sum(scores) / 3) and best.score.mean == scores[-1]
    quantiles = comparison.random_quantiles()
    assert (quantiles[0.0], quantiles[0.5], quantiles[1.0]) == pytest.approx(tuple(scores))


def test_a_comparison_is_json_and_a_table(compared):
    comparison, _ = compared
    document = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert [row["name"] for row in document["rows"]] == [row.name for row in comparison.rows]
    assert document["verdicts"][DEFAULT] == comparison.verdict(DEFAULT) and document["seed"] == 0
    assert report.comparison_table(comparison, "all").row_count == len(comparison.rows)


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
    with pytest.raises(ValueError, match="name must be one of"):
        comparison.row("theirs")
    with pytest.raises(ValueError, match="what the others are tested against"):
        comparison.verdict(UNSTEERED)


def test_methods_that_cannot_be_fitted_say_why(world):
    _, _, (own, _, narrow) = world
    fitting = Fitting(narrow, own, pairs=2)
    fitted, missing = fit_methods(fitting)
    assert set(fitted) | set(missing) == set(METHODS)
    assert "equal widths, came 16" in missing["expert: identity"]
    assert "effect" in missing["expert: Procrustes, validated pairs"]
    with pytest.raises(ValueError, match="methods must be some of"):
        fit_methods(fitting, ["magic"])
    some, _ = fit_methods(fitting, [DEFAULT])
    assert torch.equal(some[DEFAULT].vectors[0], fitted[DEFAULT].vectors[0])


def test_validated_pairs_are_those_with_the_largest_effect(world):
    _, _, (own, expert, _) = world
    seen = {}

    def effect(vectors):
        (layer,) = vectors.layers
        partner = vectors.metadata["pairing"]["pairs"][0]["expert_layer"]
        seen[partner, layer] = float(partner == 1 - layer)
        return seen[partner, layer]

    name = "expert: Procrustes, validated pairs"
    fitted, _ = fit_methods(Fitting(expert, own, pairs=2, effect=effect), [name])
    pairs = fitted[name].metadata["pairing"]["pairs"]
    assert {(p["expert_layer"], p["target_layer"]) for p in pairs} == {(1, 0), (0, 1)}
    assert len(seen) == 4


def test_random_directions_are_seeded_unit_and_scaled_like_fitted_ones(world):
    _, _, (own, _, _) = world
    first, again, other = (random_directions(own, seed) for seed in (3, 3, 4))
    assert torch.equal(first.vectors[0], again.vectors[0])
    assert not torch.equal(first.vectors[0], other.vectors[0])
    assert float(first.vectors[1].norm()) == pytest.approx(1.0, abs=1e-6)
    fitted, _ = fit_methods(Fitting(own, own, pairs=2), list(OWN)[:1])
    assert next(iter(fitted.values())).scales == first.scales


def test_a_method_without_a_strength_is_skipped_and_told(world, monkeypatch):
    target, tokenizer, (own, expert, _) = world

    def picky(divergence, vectors, searching):
        if "method" in vectors.metadata:  # fitted, not random
            raise BudgetError("none")
        return calibrated(divergence, vectors, searching)

    monkeypatch.setattr("expertsteer.evaluation.equal_price.calibrated", picky)
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


def test_captures_on_disk_are_compared_like_those_in_memory(world, tmp_path):
    target, tokenizer, (own, expert, _) = world
    stored = []
    for name, states in (("expert", expert), ("own", own)):
        states.save_pretrained(tmp_path / name)
        stored.append(es.HiddenStates.open(tmp_path / name))
    methods = [SHUFFLED, DEFAULT, "target's own mean difference"]
    options = {"methods": methods, "random": 1, "budget": BUDGET, "progress": False}
    in_memory, on_disk = (
        es.compare(target, *sides, Scorer(target, tokenizer), NEUTRAL, tokenizer, **options)
        for sides in ((expert, own), stored)
    )
    assert [row.to_dict() for row in on_disk.rows] == [row.to_dict() for row in in_memory.rows]


def test_a_list_of_layers_that_has_to_be_named_is_steered_where_it_is(world):
    target, tokenizer, (own, expert, _) = world
    options = {"methods": [DEFAULT], "random": 1, "budget": BUDGET, "progress": False}
    plain = es.compare(
        target, expert, own, Scorer(target, tokenizer), NEUTRAL, tokenizer, **options
    )
    twice = build("llama", layers=2).eval()
    # As many layers again, which never run: the list cannot be found by itself.
    twice.model.spare = torch.nn.ModuleList(build("llama", layers=2).model.layers)
    arguments = (twice, expert, own, Scorer(twice, tokenizer), NEUTRAL, tokenizer)
    with pytest.raises(ValueError, match="expected exactly one .*decoder_layers=..."):
        es.compare(*arguments, **options)
    named = es.compare(*arguments, decoder_layers="model.layers", **options)
    assert [row.to_dict() for row in named.rows] == [row.to_dict() for row in plain.rows]


def test_a_prompts_price_pairs_the_texts_that_are_measured(world):
    target, tokenizer, (own, *_) = world
    bare = tiny_tokenizer(bos=False)
    short = [NEUTRAL[0], NEUTRAL[1], "w3", "w4", NEUTRAL[2], NEUTRAL[3]]  # of one token each
    prompt = "w1 w2 "
    options = {
        "methods": ["target's own mean difference"],
        "random": 1,
        "prompts": [prompt],
        "measure": "perplexity_ratio",
        "budget": 50.0,
        "progress": False,
    }
    with_short, without = (
        es.compare(target, None, own, Scorer(target, bare), texts, bare, **options)
        for texts in (short, NEUTRAL)
    )
    rows = [made.row(PROMPT) for made in (with_short, without)]
    assert rows[0].divergence == rows[1].divergence and rows[0].extra_tokens == 2
