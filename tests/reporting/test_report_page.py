"""The report's files: they hold together, load and run nothing, and foreign text stays text."""

import json
import re
from dataclasses import replace
from importlib.resources import files

import pytest

from expertsteer.evaluation.evaluation import Answered, CurvePoint
from expertsteer.reporting.page import markdown_table, write_report
from helpers.evaluations import a_comparison, an_evaluation
from helpers.pages import Page, page_of

pytest.importorskip("matplotlib")
FILES = {"index.html", "evaluation.json", "table.md", "strength_curve.png", "layer_pairs.png"}
HOSTILE = "<script>alert(1)</script>\" ' | ` $x_1$ </style> &amp; 😀 مرحبا \x00\ud800\u202e\nend"


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


def test_equal_evaluations_give_equal_files(written, tmp_path):
    write_report(an_evaluation(), tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes(), name


def test_without_matplotlib_the_tables_stand_alone(written, tmp_path, monkeypatch):
    write_report(an_evaluation(), tmp_path)
    monkeypatch.setattr("expertsteer.reporting.page.can_plot", lambda: False)
    page = page_of(an_evaluation(), tmp_path)
    assert page.text.count("pip install 'expertsteer[plot]'") == 2
    assert "svg" not in {tag for tag, _ in page.elements}
    assert [attrs for tag, attrs in page.elements if tag == "details"] == [{"open": None}]
    assert {path.name for path in tmp_path.iterdir()} == FILES - {
        "strength_curve.png",
        "layer_pairs.png",
    }, "pictures of an earlier report are no pictures of this one"


def test_a_wrong_method_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="name must be one of"):
        write_report(an_evaluation(method="absent"), tmp_path / "new")
    with pytest.raises(ValueError, match="tested against"):
        write_report(an_evaluation(method="unsteered"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_package_ships_its_template():
    shipped = {path.name for path in files("expertsteer.reporting").iterdir()}
    assert {"page.html.j2", "parts.html.j2", "page.css"} <= shipped
