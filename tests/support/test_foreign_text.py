"""Names and notes of others on a terminal and a page: shown as they are, moving nothing."""

import io
import re

import pytest
import torch
from huggingface_hub import ModelCard

import expertsteer as es
from expertsteer.support.console import SafeConsole
from expertsteer.support.text import markdown
from expertsteer.vectors.card import model_card
from helpers.command import run

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07 [red]x[/] [/nothing] :smile: \x9b31m \u202egnp "
    "<script>a</script>\n# Head"
)


def hostile():
    about = {"name": HOSTILE, "architecture": HOSTILE, "num_layers": 3, "revision": "`" + HOSTILE}
    metadata = {"target": about, "expert": about, "method": HOSTILE, "position": HOSTILE}
    metadata["evaluation"] = [
        {"task": HOSTILE, "verdict": HOSTILE, "budget": 0.1, "measure": "kl", "rows": []}
    ]
    return es.SteeringVectors({1: torch.ones(4)}, metadata=metadata)


def test_names_say_nothing_to_a_terminal(tmp_path):
    folder = tmp_path / "[red]x[/] :smile: \x1b[2J"
    hostile().save_pretrained(folder)
    for arguments in (("inspect", folder), ("inspect", folder, "--json")):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout) & set("\x1b\x07\x9b\u202e")
        assert "[red]x[/]" in done.stdout.replace("\n", "") and "script" in done.stdout
    (tmp_path / "\x1b[2J.jsonl").write_text("{")
    options = ("--expert", "a", "--target", "b", "--out", tmp_path / "o")
    done = run("fit", "--contrast", tmp_path / "\x1b[2J.jsonl", *options)
    assert done.returncode == 2 and "\x1b" not in done.stderr and "[2J.jsonl" in done.stderr


def test_a_console_keeps_its_own_colours_and_shows_text_as_it_is():
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print("a\x1b[2Jb [bold]c[/bold] :smile:\td", style="red")
    shown = console.file.getvalue()
    assert "\x1b[31m" in shown and "\x1b[2J" not in shown and "[bold]c[/bold] :smile:" in shown


def test_a_card_holds_no_html_heading_or_fence_of_others():
    text = ModelCard(model_card(hostile().describe(), 'me/a"b\n```\n# x')).text
    outside = re.sub("`[^`\n]+`", "", text).replace("\\<", "")  # code shows what it holds
    assert "<script>" not in outside and "\x1b" not in text
    ours = [line for line in text.splitlines() if line.startswith("#")]
    assert len(ours) == 4 and text.count("```") == 2 + text.count("\\n```")
    assert markdown("a|b\n# c") == "a\\|b \\# c"


def test_metadata_of_another_kind_is_named_by_the_card():
    broken = es.SteeringVectors({1: torch.ones(2)}, metadata={"evaluation": [{"task": 1}]})
    with pytest.raises(es.ArtifactError, match="metadata: .*provenance .KeyError: 'verdict'"):
        model_card(broken.describe())
