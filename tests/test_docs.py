"""Every command and piece of Python in README and docs is run word for word, or says why not."""

import re
from pathlib import Path

import pytest

from documents import FENCE, blocks, run_blocks
from expertsteer.export.families import families_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
AFTER = [page for page in PAGES if page.name != "tutorial.md"]


def name_of(page):
    return page.name


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The tutorial, run from top to bottom: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    return folder, run_blocks(ROOT / "docs" / "tutorial.md", folder)


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tutorial):
    folder, printed = tutorial
    assert "every figure is as wanted" in printed
    question = re.escape("which home has the crow ?")
    before, after = re.search(f"{question} (\\w+) -> .*{question} (\\w+)$", printed, re.M).groups()
    assert (before, after) == ("attic", "hedge")
    assert "beats its controls" in printed
    page = (folder / "try" / "report" / "index.html").read_text("utf-8")
    assert "beats its controls" in page
    assert (folder / "try" / "vectors.gguf").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", AFTER, ids=name_of)
def test_a_page_runs_after_the_tutorial(tutorial, page):
    run_blocks(page, tutorial[0])


@pytest.mark.slow
def test_the_readme_runs(tmp_path):
    run_blocks(README, tmp_path)


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_most_of_what_is_shown_is_run():
    found = [block for page in (README, *PAGES) for block in blocks(page)]
    assert sum(block.reason is None for block in found) >= 12
    assert all(block.reason is None or len(block.reason) > 8 for block in found)


def test_the_table_of_families_is_the_programs_own():
    text = (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
    shown = text.split("<!-- families -->\n")[1].split("\n<!-- end of families -->")[0]
    assert shown == families_table(), "python -m expertsteer.export.families prints the new one"
