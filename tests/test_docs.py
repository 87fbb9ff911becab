"""Every command and piece of Python in README and docs is run word for word, or says why not."""

import re
import shlex

import pytest
import torch

import expertsteer as es
from expertsteer.export.families import families_table
from helpers import ROOT
from helpers.command import run
from helpers.documents import FENCE, PAGES, README, blocks, name_of, run_block, run_blocks
from helpers.steered_models import llama, tokens, vectors
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

ALONE = ("tutorial.md", "real-model.md")  # they begin with files of their own
AFTER = [page for page in PAGES if page.name not in ALONE]


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
    printed = run_blocks(README, tmp_path)
    assert re.search(r"^steered .*\?\s*hedge$", printed, re.M)
    assert re.search(r"^unsteered .*\?\s*attic$", printed, re.M)


@pytest.mark.slow
def test_a_real_model_is_steered_as_its_page_says(tmp_path):
    models = ROOT / "build" / "real-models"
    for name in ("gemma", "qwen-0.5b"):
        if not (models / name).is_dir():
            pytest.skip(f"{name} is not on this machine; `make real-models` fetches it")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "real-models").symlink_to(models)
    printed = run_blocks(ROOT / "docs" / "real-model.md", tmp_path)
    assert "every figure is as wanted" in printed
    written = re.findall(r"^([-+][\d.]+) (.+)$", printed, re.M)
    assert [float(strength) > 0 for strength, _ in written] == 3 * [False, False, True]
    assert len({text for _, text in written}) >= 6  # steering shows
    assert "vectors mood beats its controls" in printed
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "mood.gguf").stat().st_size > 0


def anchors(page):
    """What the headings of a page are linked by, here and on GitHub."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            there = page.parent / name if name else page
            assert there.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    shown = re.findall(r"^\.\. auto(?!module)\w+:: expertsteer\.(\w+)$", text, re.M)
    assert sorted(shown) == sorted(set(es.__all__) - {"__version__"})


def test_most_of_what_is_shown_is_run():
    found = [block for page in (README, *PAGES) for block in blocks(page)]
    assert sum(block.reason is None for block in found) >= 12
    assert all(block.reason is None or len(block.reason) > 8 for block in found)


def yours():
    """What a reader has at hand where a page says "a model of yours"."""
    X, X_huge = torch.randn(60, 8), torch.randn(80, 4)
    labels = {name: (values[:, 0] > 0).float() for name, values in (("", X), ("_huge", X_huge))}
    return {
        "es": es,
        "model": llama(vocab_size=64),
        "tokenizer": tiny_tokenizer(),
        "vectors": vectors((1,)),
        "math": vectors((1,), seed=1),
        "medicine": vectors((2,), seed=2),
        "batch_of_three": {"input_ids": tokens(3), "max_new_tokens": 2},
        "neutral_texts": [sentence(6, seed=i) for i in range(3)],
        "X": X[:40],
        "X_val": X[40:50],
        "X_new": X[50:],
        "X_huge": X_huge,
        "y": labels[""][:40],
        "y_val": labels[""][40:50],
        "y_new": labels[""][50:],
        "y_huge": labels["_huge"],
    }


LEFT_OUT = [(page, b) for page in (README, *PAGES) for b in blocks(page) if b.reason is not None]


@pytest.mark.parametrize(
    ("page", "block"),
    [
        one
        for one in LEFT_OUT
        if one[1].language == "python" and one[1].reason != "needs an account"
    ],
    ids=lambda one: getattr(one, "name", getattr(one, "line", None)),
)
def test_what_needs_models_of_yours_runs_with_small_ones(page, block, tmp_path):
    run_block(block, page.name, tmp_path, yours())


def test_commands_that_are_not_run_have_the_options_they_show():
    known = {}
    for page, block in LEFT_OUT:
        for line in block.code.replace("\\\n", " ").splitlines() if block.language == "sh" else ():
            words = shlex.split(line, comments=True)
            if "expertsteer" not in words:
                continue
            command, *rest = words[words.index("expertsteer") + 1 :]
            if command not in known:
                known[command] = run(command, "--help").stdout
            for option in rest:
                assert option[:2] != "--" or option in known[command], f"{page.name}: {line}"
    assert {"capture", "fit", "evaluate"} <= set(known)


def test_the_table_of_families_is_the_programs_own():
    text = (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
    shown = text.split("<!-- families -->\n")[1].split("\n<!-- end of families -->")[0]
    assert shown == families_table(), "python -m expertsteer.export.families prints the new one"
