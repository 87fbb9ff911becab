"""What a report says: figures and verdict, how many examples of how many, what is missing."""

import json
import re
from dataclasses import replace

import pytest
import torch

from expertsteer.evaluation.evaluation import CurvePoint, Evaluation
from expertsteer.pairing.layer_pairs import LayerPairing
from expertsteer.support.numbers import number
from helpers.evaluations import a_comparison, an_evaluation, answers
from helpers.pages import Page, page_of, squeezed

pytest.importorskip("matplotlib")


def test_every_row_of_the_comparison_stands_on_the_page_with_its_figures(written):
    rows = [squeezed(" ".join(cells)) for cells in Page(written[1]).rows]
    table = (written[0] / "table.md").read_text("utf-8")
    for r in a_comparison().rows:
        shown = next(text for text in rows if text.startswith(r.name))
        line = next(line for line in table.splitlines() if line.startswith(f"| {r.name} "))
        for value in (*r.score, r.divergence, *r.prices.values()):
            assert number(value) in shown and number(value) in line
        for test in r.against.values():
            assert f"{test.adjusted:.2g}" in shown and f"{test.adjusted:.2g}" in line
            assert number(test.difference.mean, signed=True) in shown
    assert "identity: needs equal widths" in Page(written[1]).text
    assert "identity: needs equal widths" in table


@pytest.mark.parametrize(
    "tests, within, status, words",
    [
        (((0.2, 0.001), (0.1, 0.04)), True, "good", "It beats its controls."),
        (((0.2, 0.001), (0.1, 0.06)), True, "bad", "It does not beat its controls."),
        (((-0.2, 0.001), (-0.1, 0.001)), True, "bad", "It does not beat its controls."),
        (((0.2, 0.001), (0.1, 0.04)), False, "dear", "It beats its controls, but breaks"),
        (((0.2, 0.001), (0.1, 0.06)), False, "bad", "It does not beat its controls."),
    ],
)
def test_the_verdict_stands_on_top_in_words_and_in_its_own_look(
    tmp_path, no_charts, tests, within, status, words
):
    evaluation = an_evaluation(comparison=a_comparison(tests, within))
    page = page_of(evaluation, tmp_path)
    assert [c for c in page.attributes("class") if c.startswith("verdict")] == [f"verdict {status}"]
    top = page.text[: page.text.index("Every method at the same price")]
    assert words in top and squeezed(evaluation.verdict) in top
    assert ("over budget" in page.text.split("Under each score")[0]) == (not within)


def test_a_test_without_room_is_no_failure_of_the_method(tmp_path, no_charts):
    comparison = a_comparison(((0.2, 0.001), (0.01, 1.0)))
    row = comparison.row("expert")
    best = next(reversed(row.against))

    def page(**changes):
        tests = row.against | {best: replace(row.against[best], **changes)}
        rows = tuple(replace(r, against=tests) if r is row else r for r in comparison.rows)
        return page_of(an_evaluation(comparison=replace(comparison, rows=rows)), tmp_path)

    shown = page(open_items=3)
    assert "verdict open" in shown.attributes("class")
    assert "The test cannot tell whether it beats its controls." in shown.text
    assert "on all but 3 of 40 items" in shown.text
    assert "verdict bad" in page(open_items=30).attributes("class")


def test_as_many_losses_are_shown_as_wins_and_the_page_says_of_how_many(tmp_path):
    evaluation = an_evaluation(examples=answers(300, 200, 500, "long " * 400), curves={})
    layers = 80
    chosen = tuple((i, i, 1.0) for i in range(0, layers, 7))
    matrix = torch.rand(layers, layers, generator=torch.Generator().manual_seed(0))
    evaluation = replace(evaluation, pairing=LayerPairing(chosen, "lowest", matrix))
    page = page_of(evaluation, tmp_path)
    shown = [c.split()[1] for c in page.attributes("class") if c.startswith("example ")]
    assert shown.count("win") == shown.count("loss") == shown.count("tie") == 12
    for words in ("wins (12 of 300)", "losses (12 of 200)", "ties (12 of 500)"):
        assert words in page.text
    numbers = [int(n) for n in re.findall(r"item (\d+) ", page.text)]
    # Evenly over the wins, which are the first 300 items here.
    assert numbers[:12] == [1 + 25 * i for i in range(12)]
    assert (tmp_path / "index.html").stat().st_size < 500_000
    assert len(json.loads((tmp_path / "evaluation.json").read_text("utf-8"))["examples"]) == 1000


def test_the_counts_are_those_of_all_items_where_only_some_examples_were_kept(tmp_path, no_charts):
    evaluation = an_evaluation(
        examples=answers(3, 3, 3), outcomes={"win": 70, "loss": 11, "tie": 1019}, curves={}
    )
    page = page_of(evaluation, tmp_path)
    assert "Of 1,100 items" in page.text and "70 better, 11 worse, and left 1,019" in page.text
    assert "losses (3 of 11)" in page.text and "All 9 that were kept" in page.text


def test_other_tasks_and_a_health_check_become_tables(tmp_path, no_charts):
    sides = {
        "unsteered": {"value": 0.25, "stderr": 0.02},
        "steered": {"value": 0.5, "stderr": None},
    }
    other = {
        "task": "arc",
        "metric": "acc",
        "filter": "none",
        "items": 40,
        "test": {"p_value": 0.03},
    }
    layers = [{"layer": i, "auc": 0.9 + 0.01 * i, "floor": None} for i in range(3)]
    health = {"ok": False, "warnings": ["w1"], "findings": [{"message": "w1"}], "pairs": layers}
    health["notes"] = ["good to know"]
    page = page_of(an_evaluation(harness=(other | sides,), health=health), tmp_path)
    rows = [[cell.strip() for cell in cells if cell.strip()] for cells in page.rows]
    assert ["arc", "acc", "0.250 ± 0.020", "0.500", "+0.250", "0.03", "40"] in rows
    assert ["auc", "0.900", "0.910", "0.920"] in rows
    assert page.text.count("w1") == 1 and "floor" not in page.text
    assert page.text.count("good to know") == 1 and "Note: good to know" in page.text


def test_few_losses_are_all_shown(written):
    page = Page(written[1])
    shown = [c.split()[1] for c in page.attributes("class") if c.startswith("example ")]
    assert (shown.count("win"), shown.count("loss"), shown.count("tie")) == (9, 4, 12)
    assert "losses (4 of 4)" in page.text and "ties (12 of 27)" in page.text


def test_a_bare_evaluation_says_what_is_missing(tmp_path):
    page = page_of(Evaluation("a task", "expert", a_comparison()), tmp_path)
    for words in (
        "No strengths besides the chosen ones",
        "No layer pairs were recorded",
        "No examples were kept",
        "No item or text was left out",
        "No command was recorded",
    ):
        assert words in page.text
    assert "Health check" not in page.text


def test_what_is_not_finite_is_null_in_json_and_a_sign_on_the_page(tmp_path):
    nan, infinite = float("nan"), float("inf")
    evaluation = an_evaluation(
        comparison=a_comparison(within=False),
        curves={"expert": (CurvePoint(0.0, 0.0, 0.5), CurvePoint(9.0, infinite, nan))},
        pairing=LayerPairing(((0, 1, nan),), matrix=torch.tensor([[nan, 1.0], [2.0, nan]])),
    )
    page = page_of(evaluation, tmp_path)
    assert "∞" in page.text and not re.search(r"\bnan\b", page.text, re.I)
    told = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert told["curves"]["expert"][1] == {"strength": 9.0, "divergence": None, "score": None}
    assert told["pairing"]["pairs"][0]["nats"] is None


@pytest.mark.parametrize("measure, budget", [("kl", 0.1), ("perplexity_ratio", 1.1)])
def test_points_far_beyond_the_budget_are_counted(tmp_path, measure, budget):
    points = tuple(
        CurvePoint(s, d + (measure != "kl"), 0.5)
        for s, d in ((0.0, 0.0), (1.0, 0.1), (2.0, 0.4), (4.0, 5.0))
    )
    comparison = replace(a_comparison(), measure=measure, budget=budget)
    evaluation = an_evaluation(comparison=comparison, curves={"expert": points}, pairing=None)
    text = page_of(evaluation, tmp_path).text
    assert "1 point lies so far beyond" in text
