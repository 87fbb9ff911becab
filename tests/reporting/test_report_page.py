"""The report of an evaluation: what it shows, that it is honest, that foreign text stays text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch

from expertsteer.evaluation.comparison import Comparison, ComparisonRow
from expertsteer.evaluation.evaluation import Answered, CurvePoint, Evaluation
from expertsteer.evaluation.statistics import Interval, PairedTest
from expertsteer.pairing.layer_pairs import LayerPairing
from expertsteer.reporting import page as report_page
from expertsteer.reporting.page import markdown_table, write_report
from expertsteer.support.numbers import number

pytest.importorskip("matplotlib")
FILES = {"index.html", "evaluation.json", "table.md", "strength_curve.png", "layer_pairs.png"}
VOID = set("area base br col embed hr img input link meta source track wbr".split())
HOSTILE = "<script>alert(1)</script>\" ' | ` $x_1$ </style> &amp; 😀 مرحبا \x00\ud800\u202e\nend"


def against(difference, p):
    d = Interval(difference, difference - 0.1, difference + 0.1)
    return PairedTest(d, p / 2, "mcnemar", "two-sided", 40, 9, 2, 0, adjusted=p, family=4)


def row(name, kind="own", mean=0.5, tests=None, **settings):
    controls = ("unsteered", "random directions, best of 2")
    tests = {name: against(*test) for name, test in zip(controls, tests or ())}
    interval = Interval(mean, mean - 0.07, mean + 0.07)
    return ComparisonRow(name, kind, interval, (0.0, 1.0) * 20, against=tests, **settings)


def a_comparison(tests=((0.2, 0.001), (0.15, 0.01)), within=True, name="expert"):
    price = {"prices": {"other loss": 1.532}}
    rows = (
        row("unsteered", "none", 0.512, divergence=0.0, **price),
        row("random directions, mean of 2", "random", 0.5231, divergence=0.1, tried=8),
        row("random directions, best of 2", "random", 0.5, divergence=0.1, strength=-0.4),
        row("own PCA", mean=0.41, tests=((-0.2, 0.002), (-0.1, 0.6)), divergence=0.08, **price),
        row(name, "expert", 0.713, tests, divergence=0.097, within=within, layers=(1, 2), **price),
        row("prompt before the text", "prompt", 0.61, ((0.1, 0.3), (0.1, 0.4)), divergence=0.4)
        if within
        else row("weak", tests=((0.1, 0.3), (0.1, 0.4)), divergence=float("inf")),
    )
    drawn = tuple(
        row(f"random direction {i}", "random", 0.5, divergence=0.1, strength=0.3) for i in range(2)
    )
    return Comparison(rows, drawn, {"identity": "needs equal widths"}, 0.1, "kl", 3, 12.5)


def an_evaluation(**changes):
    matrix = torch.arange(12.0).reshape(3, 4) / 10
    pairing = LayerPairing(
        ((0, 1, 0.1), (2, 3, 1.1)), "lowest", matrix, effects=((0, 1, 0.25), (1, 1, -0.5))
    )
    names = ("expert", "own PCA", "random direction 0", "random direction 1")
    curves = {
        name: tuple(CurvePoint(s, 0.1 * s * s, 0.5 + 0.1 * i * s) for s in (0.0, 0.5, 1.0, 9.0))
        for i, name in enumerate(names)
    }
    values = {
        "task": "right answers on 40 questions",
        "method": "expert",
        "comparison": a_comparison(),
        "curves": curves,
        "pairing": pairing,
        "examples": examples(9, 4, 27),
        "health": {"warnings": ["layer 0 reconstructs badly"], "auc": {"layer 1": 0.93}},
        "excluded": {"rows without an answer": 3},
        "settings": {"seed": 0, "files": {"task": "t.jsonl"}, "command": ["run", "a b", "--x"]},
    }
    return Evaluation(**values | changes)


def examples(wins, losses, ties, text="question"):
    scores = [(0.0, 1.0)] * wins + [(1.0, 0.0)] * losses + [(1.0, 1.0)] * ties
    return tuple(
        Answered(f"{text} {i}", "yes", "no", "yes", before, after)
        for i, (before, after) in enumerate(scores)
    )


class Page(HTMLParser):
    """Elements and text of a page; fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1].append(data)

    @property
    def text(self):
        return squeezed("".join(self.texts))

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def squeezed(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(an_evaluation(), folder)
    return folder, path.read_text("utf-8")


@pytest.fixture
def no_charts(monkeypatch):
    """As without matplotlib: faster, where only the words matter."""
    monkeypatch.setattr(report_page, "can_plot", lambda: False)


def page_of(evaluation, folder):
    return Page(write_report(evaluation, folder).read_text("utf-8"))


def test_the_folder_holds_page_pictures_figures_and_table(written):
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "evaluation.json").read_text("utf-8")) == json.loads(
        json.dumps(an_evaluation().to_dict())
    )
    assert (folder / "table.md").read_text("utf-8") == markdown_table(a_comparison())
    assert (folder / "layer_pairs.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_loads_nothing_and_runs_nothing(written):
    folder, text = written
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    linked = page.attributes("href") + page.attributes("xlink:href") + page.attributes("src")
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for address in linked:
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith(("https://arxiv.org/", "data:image/png;base64,")):
            assert (folder / address).is_file()
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert all(name[1:] in ids for name in re.findall(r"url\((#[^)]*)\)", text))
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_headings_descend_by_one_and_tables_have_headers(written):
    page = Page(written[1])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
    scopes = [attrs.get("scope") for tag, attrs in page.elements if tag == "th"]
    assert scopes and set(scopes) <= {"col", "row", "rowgroup"}
    labels = [attrs.get("aria-label") for _, attrs in page.elements if attrs.get("role") == "img"]
    assert len(labels) == 2 and all(labels)


def test_the_charts_take_their_colours_from_the_page(written):
    drawn = re.findall(r"<svg.*?</svg>", written[1], re.S)
    assert len(drawn) == 2
    for svg in drawn:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "var(--ink)" in svg and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
    assert written[1].count('class="cells-light"') == written[1].count('class="cells-dark"') == 2
    for name in set(re.findall(r"var\(--([\w-]+)\)", written[1])):
        assert re.search(rf"--{name}:", written[1]), name


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


def test_foreign_text_stays_text(tmp_path):
    comparison = a_comparison(name=HOSTILE)
    rows = [replace(r, prices={HOSTILE: 1.0}) for r in comparison.rows]
    comparison = replace(comparison, rows=tuple(rows), skipped={HOSTILE: HOSTILE})
    points = (CurvePoint(0.0, 0.0, 0.5), CurvePoint(1.0, 0.1, 0.6))
    evaluation = an_evaluation(
        task=HOSTILE,
        method=HOSTILE,
        comparison=comparison,
        curves={HOSTILE: points, "_hidden": points},
        examples=(Answered(HOSTILE, HOSTILE, HOSTILE, "x" * 50_000, 0.0, 1.0),),
        health={"warnings": [HOSTILE], HOSTILE: [{HOSTILE: HOSTILE}]},
        excluded={HOSTILE: 1},
        settings={HOSTILE: HOSTILE, "command": HOSTILE},
        pairing=replace(an_evaluation().pairing, rule=HOSTILE),
    )
    page = page_of(evaluation, tmp_path)
    assert not {tag for tag, _ in page.elements} & {"script"}
    assert page.text.count("<script>alert(1)</script>\" ' | ` $x_1$ </style> &amp; 😀 مرحبا") > 12
    assert not re.search("[\x00\ud800]", page.text) and "_hidden" in page.text
    assert "x" * 1000 not in page.text and "49,600 characters left out" in page.text
    rows = (tmp_path / "table.md").read_text("utf-8").splitlines()
    rows = [re.sub(r"\\.", "", line) for line in rows if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and "<" not in "".join(rows)
    told = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert told["examples"][0]["prompt"] == HOSTILE.replace("\ud800", "\ufffd")


def test_as_many_losses_are_shown_as_wins_and_the_page_says_of_how_many(tmp_path):
    evaluation = an_evaluation(examples=examples(300, 200, 500, "long " * 400), curves={})
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
        examples=examples(3, 3, 3), outcomes={"win": 70, "loss": 11, "tie": 1019}, curves={}
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
    page = page_of(an_evaluation(harness=(other | sides,), health=health), tmp_path)
    rows = [[cell.strip() for cell in cells if cell.strip()] for cells in page.rows]
    assert ["arc", "acc", "0.250 ± 0.020", "0.500", "+0.250", "0.03", "40"] in rows
    assert ["auc", "0.900", "0.910", "0.920"] in rows
    assert page.text.count("w1") == 1 and "floor" not in page.text


def test_few_losses_are_all_shown(written):
    page = Page(written[1])
    shown = [c.split()[1] for c in page.attributes("class") if c.startswith("example ")]
    assert (shown.count("win"), shown.count("loss"), shown.count("tie")) == (9, 4, 12)
    assert "losses (4 of 4)" in page.text and "ties (12 of 27)" in page.text


def test_equal_evaluations_give_equal_files(written, tmp_path):
    write_report(an_evaluation(), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes(), name


def test_without_matplotlib_the_tables_stand_alone(written, tmp_path, monkeypatch):
    write_report(an_evaluation(), tmp_path)
    monkeypatch.setattr(report_page, "can_plot", lambda: False)
    page = page_of(an_evaluation(), tmp_path)
    assert page.text.count("pip install 'expertsteer[plot]'") == 2
    assert "svg" not in {tag for tag, _ in page.elements}
    assert [attrs for tag, attrs in page.elements if tag == "details"] == [{"open": None}]
    assert {path.name for path in tmp_path.iterdir()} == FILES - {
        "strength_curve.png",
        "layer_pairs.png",
    }, "pictures of an earlier report are no pictures of this one"


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


def test_a_wrong_method_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="name must be one of"):
        write_report(an_evaluation(method="absent"), tmp_path / "new")
    with pytest.raises(ValueError, match="tested against"):
        write_report(an_evaluation(method="unsteered"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_package_ships_its_template():
    shipped = {path.name for path in files("expertsteer.reporting").iterdir()}
    assert {"page.html.j2", "parts.html.j2", "page.css"} <= shipped
