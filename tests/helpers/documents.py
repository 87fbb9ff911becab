"""The pages, the blocks of code in a markdown file, and how a reader would run them in turn."""

import os
import re
import shlex
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO

from helpers import ROOT
from helpers.command import run

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# A block is run unless the line above it says why not: <!-- not run: needs a GPU -->
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN = ("sh", "python")


def name_of(page):
    return page.name


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    reason: str | None  # why it is not run


def blocks(path):
    """Every block in a language that is run."""
    text = path.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        if match["language"] in RUN:
            found.append(Block(match["language"], match["code"], line, match["reason"]))
    return found


def run_blocks(path, folder, names=None):
    """Run the blocks of a document in order in ``folder``; returns what they printed."""
    names, printed = dict(names or {}), []
    for block in blocks(path):
        if block.reason is not None:
            continue
        printed.append(run_block(block, path.name, folder, names))
    return "\n".join(printed)


def run_block(block, page, folder, names):
    """Run one block in ``folder`` with and into ``names``; returns what it printed."""
    with _inside(folder):
        step = _shell if block.language == "sh" else _python
        return step(block.code, f"{page}:{block.line}", names)


@contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _shell(code, where, _):
    printed = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "expertsteer", f"{where}: {line!r} is no command that the tests can run"
        done = run(*words[1:])
        assert done.returncode == 0, f"{where}: {line}\n{done.stderr}"
        printed.append(done.stdout)
    return "\n".join(printed)


def _python(code, where, names):
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(code, where, "exec"), names)
    return out.getvalue()
