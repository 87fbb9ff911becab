"""Damaged files: whatever happens to one, it loads as it was or is refused by name."""

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import expertsteer as es
from expertsteer.cli.options import lines
from expertsteer.export import lm_eval
from expertsteer.export.gguf import export_gguf, import_gguf
from expertsteer.export.npz import export_npz, import_npz
from expertsteer.export.source import model_without_weights, open_source
from expertsteer.reporting.vectors_table import vectors_table
from expertsteer.support.artifact_files import write_artifact
from expertsteer.support.reading import ArtifactError
from expertsteer.tasks import load_task
from expertsteer.vectors.card import model_card
from helpers.artefacts import ARTEFACTS, alignment, captured, drawn, pairing, states, told, vectors
from helpers.families import build
from helpers.mutations import bounded, damaged, odd_json, seeded

TIMES = 300  # of each file


def by_layer(folder):
    """A capture through its ordinary readings: by layer, by row, and the columns."""
    stored = es.HiddenStates.open(folder)
    parts = (
        [stored.states[i] for i in range(len(stored.states))],
        stored.labels,
        stored.keys,
        stored.pairs,
    )
    return *parts, stored.take([0, 5]), stored.layers, stored.position, stored.model


OURS = {
    "vectors": (lambda f: vectors().save_pretrained(f), es.SteeringVectors.from_pretrained),
    "states": (lambda f: states().save_pretrained(f), es.HiddenStates.from_pretrained),
    "stored": (lambda f: states().save_pretrained(f), by_layer),
    "pairing": (lambda f: pairing().save_pretrained(f), es.LayerPairing.from_pretrained),
    "alignment": (lambda f: alignment().save_pretrained(f), es.Alignment.from_pretrained),
    "capture": (captured, by_layer),
    "npz": (lambda f: export_npz(vectors(), f / "v.npz"), lambda f: import_npz(f / "v.npz")),
    "gguf": (lambda f: export_gguf(vectors(), f / "v.gguf"), lambda f: import_gguf(f / "v.gguf")),
    "lm-eval": (
        lambda f: lm_eval.write(f / "v.pt", vectors_of_model(), build("llama")),
        lambda f: lm_eval.read(f / "v.pt"),
    ),
}


def vectors_of_model():
    return es.SteeringVectors({1: drawn(32)})


def refused_or(read, folder):
    """What ``read`` gives, or ``None`` where it refuses and names the folder."""
    try:
        return read(folder)
    except ValueError as error:
        assert str(folder) in str(error), f"no path in: {error}"
        return None


@pytest.mark.parametrize("kind", OURS)
def test_a_damaged_file_of_ours_loads_as_it_was_or_is_refused_by_name(kind, tmp_path):
    write, read = OURS[kind]
    if kind == "gguf":
        pytest.importorskip("gguf")
    write(tmp_path)
    whole = told(read(tmp_path))
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file() and path.name[0] != ".")
    refused = 0
    for path in paths:
        generator, data = seeded(f"{kind} {path.name}"), path.read_bytes()
        with bounded():
            for _ in range(TIMES // len(paths)):
                change = damaged(data, generator)
                path.write_bytes(change)
                found = refused_or(read, tmp_path)
                assert found is None or told(found) == whole, f"other content from {path.name}"
                refused += found is None
        path.write_bytes(data)
    assert told(read(tmp_path)) == whole and refused > TIMES // 2


def header_of(made, folder, kind):
    made.save_pretrained(folder)
    text = (folder / f"{kind}.json").read_text()
    return text, load_file(folder / f"{kind}.safetensors")


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_document_of_wrong_types_is_refused_by_name(kind, tmp_path):
    """Whole by its digests, since whoever makes a file up makes those up as well."""
    made, read = ARTEFACTS[kind]
    text, tensors = header_of(made(), tmp_path, kind)
    generator = seeded(kind)
    with bounded():
        for _ in range(TIMES):
            header = json.loads(odd_json(text, generator))
            for name in ("digests", "sha256"):
                header.pop(name, None)
            write_artifact(tmp_path, kind, tensors, header)
            found = refused_or(read, tmp_path)
            if kind == "steering_vectors" and found is not None:
                shown_or_refused(found)


def shown_or_refused(found):
    """What reads metadata: the card, the table, and what asks whether vectors fit a model."""
    for use in (
        lambda v: model_card(v.describe()),
        partial(vectors_table, title="t"),
        lambda v: v + v,
    ):
        try:
            use(found)
        except ValueError as error:
            assert "metadata" in str(error) or "must be finite" in str(error)  # twice 1e308


def test_a_manifest_of_wrong_types_is_refused_by_name(tmp_path):
    captured(tmp_path)
    path = tmp_path / "capture.json"
    text, generator = path.read_text(), seeded("manifest")
    without = {k: v for k, v in json.loads(text).items() if k != "number"}  # as older releases do
    with bounded():
        for _ in range(TIMES):
            path.write_text(odd_json(json.dumps(without), generator))
            refused_or(by_layer, tmp_path)
        path.write_text(json.dumps(without | {"contrast": {"sha256": "0", "examples": 10**12}}))
        with pytest.raises(ArtifactError, match="capture.json names 1,000,000,000,000 examples"):
            es.HiddenStates.open(tmp_path)


def rows(count=12):
    return [{"text": f"text {i} ä", "label": i % 2, "pair": i // 2} for i in range(count)]


def write_parquet(folder):
    table = pytest.importorskip("pyarrow").table({n: [r[n] for r in rows()] for n in rows()[0]})
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, folder / "c.parquet")


def write_jsonl(folder, name="c.jsonl", made=None):
    text = "\n".join(map(json.dumps, made or rows()))
    (folder / name).write_text(text)


TASK = [{"question": f"q {i}", "choices": ["a", "b"], "answer": "a"} for i in range(8)]
FOREIGN = {
    "jsonl": (write_jsonl, lambda f: es.ContrastSet.from_file(f / "c.jsonl")),
    "jsonl alone": (write_jsonl, lambda f: es.ContrastSet.from_jsonl(f / "c.jsonl")),
    "parquet": (write_parquet, lambda f: es.ContrastSet.from_file(f / "c.parquet")),
    "task": (partial(write_jsonl, made=TASK), lambda f: load_task(f / "c.jsonl", "choice")),
    "neutral": (
        lambda f: (f / "n.txt").write_text("one\ntwo ä\n", "utf-8"),
        lambda f: lines("neutral", f / "n.txt"),
    ),
    "archive by hand": (
        lambda f: np.savez_compressed(f / "v.npz", layers=[1, 2], vectors=np.ones((2, 5))),
        lambda f: import_npz(f / "v.npz"),
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_damaged_file_of_others_loads_or_is_refused_by_name(kind, tmp_path):
    write, read = FOREIGN[kind]
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    generator, data = seeded(kind), path.read_bytes()
    with bounded(), warnings.catch_warnings():
        for turn in range(TIMES):
            path.write_bytes(damaged(data, generator))
            if path.suffix == ".jsonl" and turn % 2:
                lines_ = data.decode().splitlines()
                place = generator.randrange(len(lines_))
                lines_[place] = odd_json(lines_[place], generator)
                path.write_text("\n".join(lines_), "utf-8")
            refused_or(read, tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    build("llama").save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "*-00002-*"])
def test_a_damaged_checkpoint_is_refused_by_name(name, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    (path,) = folder.glob(name)
    generator, data = seeded(name), path.read_bytes()
    with bounded(40), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells of odd values before it fails
        for turn in range(60):
            change = damaged(data, generator)
            if path.suffix == ".json" and turn % 2:
                change = odd_json(data, generator).encode()
            path.write_bytes(change)
            refused_or(lambda f: model_without_weights(open_source(f)), folder)
