"""Writers: whole or not at all, whatever ends them; paths; what a killed one left."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import expertsteer as es
from expertsteer.export import lm_eval
from expertsteer.export.npz import export_npz, import_npz
from expertsteer.support.paths import local_path
from expertsteer.support.writing import appearing, remove_leftovers, replacing
from helpers.artefacts import captured, pairing, states, vectors
from helpers.command import python, run
from helpers.families import build

KILLED = ("vectors", "states", "pairing", "alignment", "shards", "npz", "gguf", "lm-eval", "report",
          "sglang", "checkpoint", "demo files")  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What became of every writer; one process, since starting it takes longest."""
    pytest.importorskip("gguf")
    pytest.importorskip("matplotlib")
    if sys.platform != "linux":
        pytest.skip("forks processes and limits their files")
    root = tmp_path_factory.mktemp("killed")
    return json.loads(python("-m", "helpers.killed", root).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_writer_leaves_old_or_new_and_a_full_disk_names_the_file(name, ends):
    assert ends[name]["problems"] == []
    assert ends[name]["killed"] >= 10 and ends[name]["refused"] >= 3


def test_every_writer_is_killed(ends):
    assert set(ends) == set(KILLED)


def left_over(path):
    path.mkdir()
    (path / path.name).write_text("half")
    return path


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    vectors().save_pretrained(tmp_path)
    dead = [
        left_over(tmp_path / f".steering_vectors.{ending}.abcd_123.tmp")
        for ending in ("json", "safetensors")
    ]
    names = (".steering_vectors.json.tmp", ".other.json.abcd_123.tmp", "steering_vectors.json.tmp")
    others = [tmp_path / name for name in names]
    for path in others:  # of nobody that is known here
        path.write_text("kept")
    with replacing(tmp_path / "steering_vectors.json") as alive:  # a writer in the middle of it
        alive.write_text("half")
        remove_leftovers(tmp_path, "steering_vectors.json")
        assert alive.exists() and not dead[0].exists() and dead[1].exists()
        alive.write_text((tmp_path / "steering_vectors.json").read_text())
    vectors().save_pretrained(tmp_path)
    assert not dead[1].exists() and all(path.exists() for path in others)
    hidden = {p.name for p in tmp_path.iterdir() if p.name.startswith(".")}
    assert hidden == set(names[:2])


def test_files_that_earlier_versions_left_are_removed_too(tmp_path):
    left = tmp_path / ".v.npz.abcd_123.tmp"
    left.write_text("half")
    export_npz(vectors(), tmp_path / "v.npz")
    assert not left.exists()


def test_a_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    told = pytest.raises(es.ArtifactError, match="x.txt cannot be written: .*No space")
    with told, replacing(path) as temporary:
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("name", ["n" * 255, "a[b]*?.npz"[:-4], "ä" * 100])
def test_names_as_long_and_odd_as_the_system_has_them(name, tmp_path):
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == [name]


# Paths


def write_all(folder):
    """Every kind of file, at paths that begin with ~."""
    vectors().save_pretrained(f"{folder}/v")
    pairing().save_pretrained(f"{folder}/v")
    states().save_pretrained(Path(f"{folder}/s"))
    export_npz(vectors(), f"{folder}/v.npz")
    lm_eval.write(f"{folder}/v.pt", es.SteeringVectors({1: torch.ones(32)}), build("llama"))


def test_a_path_with_a_tilde_is_in_the_home_folder(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    write_all("~/x")
    (home / "x" / "c").mkdir()
    captured(home / "x" / "c")
    (home / "c.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert es.SteeringVectors.from_pretrained("~/x/v").fingerprint == vectors().fingerprint
    assert es.LayerPairing.from_pretrained("~/x/v").pairs == pairing().pairs
    assert torch.equal(es.HiddenStates.from_pretrained("~/x/s").states, states().states)
    assert es.HiddenStates.open("~/x/c").shape == (2, 10, 5)
    assert import_npz("~/x/v.npz").layers == (1, 3) and len(lm_eval.read("~/x/v.pt")) == 1
    for read in (es.ContrastSet.from_file, es.ContrastSet.from_jsonl):
        assert len(read("~/c.jsonl")) == 2
    shown = run("inspect", "~/x/v", "--json")
    assert shown.returncode == 0 and json.loads(shown.stdout)["width"] == 6
    assert run("import", "~/x/v.npz", "--out", "~/y").returncode == 0
    for form in ("npz", "sglang"):
        out = f"~/made.{form}"
        more = [] if form == "npz" else ["--strength", "1"]
        done = run("export", "~/y", "--out", out, "--format", form, *more)
        assert done.returncode == 0, done.stderr
    made = {"x", "y", "c.jsonl", "made.npz", "made.sglang"}
    assert not list(here.iterdir()) and {p.name for p in home.iterdir()} == made


@pytest.mark.parametrize(
    "path, reason",
    [
        ("", "must name a file or folder, came an empty text"),
        ("a\0b", "must not hold a NUL character"),
        (3, "must be a path, came int"),
        ("~nobody-of-that-name/x", "there is no user 'nobody-of-that-name'"),
        ("a\ud800", "no path that can exist here"),
    ],
)
def test_paths_that_cannot_be(path, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (local_path, vectors().save_pretrained, es.HiddenStates.open,
                es.SteeringVectors.from_pretrained, es.ContrastSet.from_file):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            use(path)
    assert not list(tmp_path.iterdir())


def test_files_of_a_folder_that_appears_can_be_read_as_any_new_file(tmp_path):
    with appearing(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"0")
        (folder / "weights").chmod(0o600)  # as some libraries write them
        (folder / "settings").write_text("1")
    found = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert found["weights"] == found["settings"]
