"""What README, CONTRIBUTING and docs/ say of this repository: its trees, paths and figures."""

import re

import pytest

from helpers import ROOT
from helpers.documents import PAGES, README, name_of
from test_layers import FOLDERS, PACKAGE

CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@pytest.mark.parametrize(("page", "most"), [(README, 150), (CONTRIBUTING, 110)])
def test_the_first_pages_stay_short(page, most):
    assert len(page.read_text("utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=name_of)
def test_a_tree_names_every_folder_in_the_order_of_imports(page):
    tree = re.search(r"^python/expertsteer/.*?^csrc/", page.read_text("utf-8"), re.M | re.S)[0]
    named = re.findall(r"\b(\w+)/", "\n".join(line[:24] for line in tree.splitlines()[1:-1]))
    assert named == [folder for folder in FOLDERS if folder in named]
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} & {*FOLDERS} <= {*named}


def paths(page):
    """What a page names of this repository: files, folders, modules that it runs, links."""
    text = page.read_text("utf-8")
    modules = re.findall(r"-m ((?:benchmarks|expertsteer)\.[\w.]*\w)", text)
    names = [f"{name.replace('.', '/')}.py" for name in modules]
    names = [f"python/{name}" if name.startswith("expertsteer") else name for name in names]
    folders = r"(?<![\w/.-])(?:python|csrc|tests|benchmarks|docs|examples|\.ci)/[\w./-]+\w"
    links = re.findall(r"\]\((?!http)([^)#\s]+)", text) if page.parent == ROOT else []
    return {*names, *links, *re.findall(folders, text)}


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=name_of)
def test_files_that_are_named_exist(page):
    assert not {path for path in paths(page) if not (ROOT / path).exists()}


def test_figures_of_the_readme_stand_in_the_pages_with_all_of_them():
    sections = re.split(r"^## ", README.read_text("utf-8"), flags=re.M)
    for title, page, figure in (
        ("What it does", "demo.md", r"^\|.+\|$"),
        ("How fast it is", "performance.md", r"\b[\d.]+x"),
    ):
        (section,) = (text for text in sections if text.startswith(title))
        shown = re.findall(figure, section, re.M)
        known = re.findall(figure, (ROOT / "docs" / page).read_text("utf-8"), re.M)
        assert len(shown) > 5 and not set(shown) - set(known), title
