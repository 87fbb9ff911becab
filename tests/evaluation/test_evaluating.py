"""One call from a task to an evaluation: what it holds is what can be measured again."""

import json
import math

import pytest
import torch

import expertsteer as es
from expertsteer.calibration.calibrating import BudgetError
from expertsteer.evaluation import evaluating
from expertsteer.evaluation.comparing import compare
from expertsteer.evaluation.comparison import UNSTEERED
from expertsteer.evaluation.evaluating import GIVEN
from expertsteer.evaluation.evaluation import Evaluation
from expertsteer.evaluation.methods import OWN, PAPER
from expertsteer.models.scoring import mean_loss
from helpers.divergence import one_by_one
from helpers.equal_price import BUDGET, NEUTRAL
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

NAMES = ["target's own mean difference", "expert: Procrustes, validated pairs", PAPER]
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def rows(count=30):
    return [
        {"question": sentence(3 + i % 3, seed=i), "choices": ["w4", "w7", "w9"], "answer": i % 3}
        for i in range(count)
    ]


TASK = es.MultipleChoice.from_rows(rows())


@pytest.fixture(scope="module")
def evaluated(world):
    target, tokenizer, (own, _, expert) = world
    return es.evaluate(
        target,
        tokenizer,
        TASK,
        expert,
        own,
        NEUTRAL,
        methods=NAMES,
        vectors={"mine": es.SteeringVectors({1: torch.ones(32)}, {1: 2.0})},
        method=PAPER,
        budget=BUDGET,
        random=2,
        examples=9,
        settings={"command": ["expertsteer", "evaluate"]},
        progress=False,
    )


def test_the_comparison_is_that_of_compare(world, evaluated):
    target, tokenizer, (own, _, expert) = world
    on = TASK.on(target, tokenizer, progress=False)
    options = {"methods": [PAPER], "random": 2, "budget": BUDGET, "progress": False}
    alone = compare(target, expert, own, on.score, NEUTRAL, tokenizer, **options)
    for name in (UNSTEERED, "random directions, best of 2", PAPER):
        one, other = alone.row(name), evaluated.comparison.row(name)
        assert one.values == other.values and one.strength == other.strength
    assert {row.kind for row in evaluated.comparison.rows} >= {"none", "random", "own", "given"}
    assert evaluated.verdict == evaluated.comparison.verdict(PAPER)
    assert evaluated.task == f"accuracy on {len(on.items['test'])} items of rows"


def test_every_steered_row_has_its_curve_at_shares_of_its_strength(evaluated):
    steered = [row for row in evaluated.comparison.rows if row.strength is not None]
    assert list(evaluated.curves) == [row.name for row in steered] and len(steered) == 5
    for row in steered:
        points = evaluated.curves[row.name]
        shares = [p.strength / abs(row.strength) for p in points]
        assert shares == pytest.approx(FRACTIONS)
        unsteered = evaluated.comparison.row(UNSTEERED).score.mean
        assert points[0][1:] == (0.0, unsteered)
        assert points[4][1:] == (row.divergence, row.score.mean)
        assert all(a.divergence < b.divergence for a, b in zip(points, points[1:]))


def test_a_point_of_a_curve_is_measured_as_it_says(world, evaluated):
    target, tokenizer, _ = world
    row, point = evaluated.comparison.row("mine"), evaluated.curves["mine"][2]
    vectors = es.SteeringVectors({1: torch.ones(32)}, {1: 2.0})
    price = one_by_one(target, tokenizer, vectors, point.strength, texts=NEUTRAL[1::2])
    assert point.divergence == pytest.approx(price, rel=1e-3) and row.layers == (1,)
    with es.attach(target, vectors, strength=point.strength):
        score = TASK.on(target, tokenizer).score("test")[:, 0]
    assert point.score == pytest.approx(float(score.mean()))


def test_examples_are_test_items_before_and_after(evaluated):
    before = evaluated.comparison.row(UNSTEERED).values
    after = evaluated.comparison.row(PAPER).values
    counted = {"win": 0, "loss": 0, "tie": 0}
    for a, b in zip(before, after):
        counted["tie" if a == b else "win" if b > a else "loss"] += 1
    assert evaluated.outcomes == counted
    kept = [e.outcome for e in evaluated.examples]
    assert len(kept) == 9
    for outcome, count in counted.items():
        assert kept.count(outcome) >= min(count, 3)
    for example in evaluated.examples:
        assert example.after == float(example.steered == example.expected)
        assert example.before == float(example.unsteered == example.expected)


def test_the_pairing_keeps_the_effects_that_were_measured(evaluated):
    pairing = evaluated.pairing
    assert pairing.rule == "lowest" and len(pairing) == 2 and pairing.matrix.shape == (2, 2)
    unsteered = evaluated.comparison.rows[0].validation
    gains = [effect for *_, effect in pairing.effects]
    assert all(-unsteered - 1e-5 <= gain <= 1 - unsteered + 1e-5 for gain in gains)
    assert {(e, t) for e, t, _ in pairing.effects} == {(e, t) for e in (0, 1) for t in (0, 1)}
    cost = evaluated.settings["pair effects"]
    assert cost["measured"] == 4 and 4 * 4 <= cost["passes over neutral texts"] <= 4 * 13


def test_settings_tell_where_everything_came_from(world, evaluated):
    settings, (_, _, expert) = evaluated.settings, world[2]
    assert settings["expert"] == expert.model and settings["target"]["num_layers"] == 2
    assert settings["contrast"]["examples"] == 40 and len(settings["contrast"]["hash"]) == 16
    assert settings["task"]["type"] == "MultipleChoice"
    assert settings["task"]["options"] == {"normalize": False, "joiner": " "}
    assert settings["vectors"]["mine"]["layers"] == [1] and settings["seed"] == 0
    assert settings["command"] == ["expertsteer", "evaluate"]
    assert {"expertsteer", "torch", "transformers", "python"} <= set(settings["versions"])


def test_an_evaluation_is_json(evaluated):
    document = json.loads(json.dumps(evaluated.to_dict(), allow_nan=False))
    assert document["outcomes"] == evaluated.outcomes and document["harness"] == []
    assert [row["name"] for row in document["comparison"]["rows"]][0] == UNSTEERED


def test_the_health_of_the_fit_is_told(world, evaluated):
    told = json.loads(json.dumps(evaluated.health, allow_nan=False))
    assert told["examples"] == 40 and len(told["pairs"]) == 2
    given = es.SteeringVectors({0: torch.ones(32)}, metadata={"health": {"examples": 7}})
    assert evaluate(world, vectors=given).health == {"examples": 7}
    assert evaluate(world, vectors=given, health={"mine": 1}).health == {"mine": 1}
    assert evaluate(world, target="own", methods=list(OWN)[:1]).health == {}


def evaluate(world, **options):
    target, tokenizer, (own, _, expert) = world
    options = {"task": TASK, "neutral": NEUTRAL, "random": 1, "progress": False} | options
    options = {"budget": BUDGET, "curves": False, "expert": None, "target": None} | options
    chosen = {"expert": expert, "own": own}
    options = {n: chosen.get(v, v) if isinstance(v, str) else v for n, v in options.items()}
    return es.evaluate(target, tokenizer, **options)


def test_fitted_vectors_need_no_expert(world):
    given = es.SteeringVectors({0: torch.randn(32), 1: torch.randn(32)}, {0: 3.0, 1: 4.0})
    alone = evaluate(world, vectors=given)
    assert alone.method == GIVEN and alone.pairing is None and not alone.curves
    assert [row.kind for row in alone.comparison.rows] == ["none", "random", "random", "given"]
    reasons = set(alone.comparison.skipped.values())
    assert reasons == {"needs the target's states over a contrast set"}
    assert alone.settings["expert"] is None and alone.settings["contrast"] is None
    beside = evaluate(world, vectors=given, target="own", methods=list(OWN)[:1])
    assert beside.method == GIVEN and beside.comparison.row(list(OWN)[0]).kind == "own"
    assert beside.comparison.row(GIVEN).values == alone.comparison.row(GIVEN).values
    own = evaluate(world, target="own", methods=list(OWN)[:2], curves="method")
    assert own.method == list(OWN)[0] == list(own.curves)[0] and len(own.curves) == 1


def test_a_prompt_can_be_what_the_verdict_is_about(world):
    name = "prompt before the text"
    made = evaluate(world, target="own", methods=list(OWN)[:1], prompts=["w1 "], method=name)
    target, tokenizer, _ = world
    scores = TASK.on(target, tokenizer).score("test", "w1 ")[:, 0].tolist()
    assert made.method == name and list(made.comparison.row(name).values) == scores
    assert len(made.examples) == len(scores)  # all of them, so in the order of the task
    assert [e.after for e in made.examples] == scores


def test_perplexity_has_the_price_on_neutral_text(world):
    target, tokenizer, _ = world
    task = es.Perplexity.from_texts([sentence(6 + i % 4, seed=i) for i in range(12)])
    made = evaluate(world, task=task, target="own", methods=list(OWN)[:1], prompts=["w1 w2 "])
    for name, prompt in ((UNSTEERED, ""), ("prompt before the text", "w1 w2 ")):
        row = made.comparison.row(name)
        losses = mean_loss(target, tokenizer, NEUTRAL[1::2], context=prompt)
        tokens = torch.tensor([len(tokenizer(t)["input_ids"]) - 1 for t in NEUTRAL[1::2]])
        expected = float((losses * tokens).sum() / tokens.sum())
        assert row.prices["neutral loss"] == pytest.approx(expected, rel=1e-6)
    shown = made.settings["perplexity"][UNSTEERED]
    mean = made.comparison.row(UNSTEERED).score.mean
    assert shown["task"] == pytest.approx(math.exp(-mean))
    assert shown["neutral"] > 1


def test_texts_too_short_for_a_loss_are_left_out_of_every_list(world):
    target, _, (own, *_) = world
    bare = tiny_tokenizer(bos=False)
    task = es.Perplexity.from_texts([sentence(6 + i % 4, seed=i) for i in range(12)])
    short = [NEUTRAL[0], "w3", NEUTRAL[2], NEUTRAL[1], NEUTRAL[0], NEUTRAL[3]]  # every second one
    options = {"methods": list(OWN)[:1], "prompts": ["w1 w2 "], "random": 1, "budget": BUDGET}
    made = es.evaluate(
        *(target, bare, task, None, own, short), **options, curves=False, progress=False
    )
    for name, prompt in ((UNSTEERED, ""), ("prompt before the text", "w1 w2 ")):
        kept = [NEUTRAL[1], NEUTRAL[3]]
        tokens = torch.tensor([len(bare(t)["input_ids"]) - 1 for t in kept])
        losses = mean_loss(target, bare, kept, context=prompt)
        expected = float((losses * tokens).sum() / tokens.sum())
        row = made.comparison.row(name)
        assert row.prices["neutral loss"] == pytest.approx(expected, rel=1e-6)


def test_a_named_list_of_layers_reaches_every_part_of_an_evaluation(world):
    _, tokenizer, (own, _, expert) = world
    target = build("llama", layers=2).eval()
    target.model.spare = torch.nn.ModuleList(build("llama", layers=2).model.layers)
    options = {"methods": [PAPER], "random": 1, "examples": 2, "progress": False}
    arguments = (target, tokenizer, TASK, expert, own, NEUTRAL)
    made = es.evaluate(*arguments, decoder_layers="model.layers", **options)
    assert made.curves[PAPER] and made.settings["target"]["num_layers"] == 2
    with pytest.raises(ValueError, match="decoder_layers=..."):
        es.evaluate(*arguments, **options)


def test_what_was_left_out_is_counted(world):
    long = [sentence(80, seed=1), *NEUTRAL]
    task = es.MultipleChoice.from_rows([*rows(), rows(1)[0] | {"question": sentence(70)}])
    made = evaluate(world, task=task, neutral=long, target="own", methods=list(OWN)[:1])
    assert made.excluded["neutral texts cut to the context"] == 1
    assert sum(made.excluded.values()) == 2


def test_the_package_offers_both_by_name():
    assert es.evaluate is evaluating.evaluate and es.Evaluation is Evaluation


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, "target must be the target's capture, or vectors"),
        ({"expert": "expert"}, "target must be the target's capture, or vectors"),
        ({"target": "own", "method": "magic"}, "method must be one of"),
        ({"target": "own", "method": PAPER}, "was not measured, since it was not asked"),
        ({"target": "own", "examples": -1}, "examples must be"),
        ({"target": "own", "curves": "all"}, "curves must be True, False"),
        ({"target": "own", "curves": ["magic"]}, "curves must be True, False"),
        ({"target": "own", "neutral": ["w1 w2"]}, "at least two texts"),
        (
            {"target": "own", "vectors": {UNSTEERED: es.SteeringVectors({0: torch.ones(32)})}},
            "name",
        ),
        ({"vectors": {"a": torch.ones(32)}}, "vectors must be SteeringVectors"),
        ({"vectors": es.SteeringVectors({0: torch.ones(7)})}, "width 7"),
        ({"target": "own", "lm_eval": {"tasks": []}}, "at least one lm-eval task"),
        ({"target": "own", "budget": 0.0}, "budget must be more than 0"),
    ],
)
def test_bad_input_is_named(world, change, named):
    with pytest.raises(ValueError, match=named):
        evaluate(world, methods=list(OWN)[:1] if "target" in change else None, **change)


def test_a_budget_that_the_method_cannot_meet_is_an_error(world, no_strength_of_methods):
    with pytest.raises(BudgetError, match="met by no strength of \"target's own mean difference"):
        evaluate(world, target="own", methods=list(OWN)[:1])
