"""Every method at one price: what is chosen where, what is tested, what each row tells."""

import json

import pytest
import torch

import expertsteer as es
from expertsteer.evaluation.comparison import PROMPT, UNSTEERED
from expertsteer.evaluation.methods import METHODS, PAPER, SHUFFLED, Fitting, fit_methods
from expertsteer.evaluation.statistics import corrected, paired_test
from expertsteer.models.scoring import mean_loss
from expertsteer.reporting.terminal import comparison_table
from helpers.divergence import one_by_one
from helpers.equal_price import BUDGET, NEUTRAL, Scorer
from helpers.families import build
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers


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


@pytest.mark.parametrize("name", ["target's own mean difference", PAPER])
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
    assert document["verdicts"][PAPER] == comparison.verdict(PAPER) and document["seed"] == 0
    assert comparison_table(comparison, "all").row_count == len(comparison.rows)


def test_captures_on_disk_are_compared_like_those_in_memory(world, tmp_path):
    target, tokenizer, (own, expert, _) = world
    stored = []
    for name, states in (("expert", expert), ("own", own)):
        states.save_pretrained(tmp_path / name)
        stored.append(es.HiddenStates.open(tmp_path / name))
    methods = [SHUFFLED, PAPER, "target's own mean difference"]
    options = {"methods": methods, "random": 1, "budget": BUDGET, "progress": False}
    in_memory, on_disk = (
        es.compare(target, *sides, Scorer(target, tokenizer), NEUTRAL, tokenizer, **options)
        for sides in ((expert, own), stored)
    )
    assert [row.to_dict() for row in on_disk.rows] == [row.to_dict() for row in in_memory.rows]


def test_a_list_of_layers_that_has_to_be_named_is_steered_where_it_is(world):
    target, tokenizer, (own, expert, _) = world
    options = {"methods": [PAPER], "random": 1, "budget": BUDGET, "progress": False}
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
