"""Files that are read while they are written: one save or the other, never parts of two."""

import threading

import pytest
import torch

import expertsteer as es
from expertsteer.support.artifact_files import read_artifact, write_artifact


def test_a_reader_beside_a_writer_gets_one_save_whole(tmp_path):
    """Each save has its own number in every place: in the tensors, the scales, the metadata."""
    stop, failed = threading.Event(), []

    def write():
        number = 0
        try:
            while not stop.is_set():
                number += 1
                value = float(number)
                made = {i: torch.full((64,), value) for i in range(3)}
                scales = dict.fromkeys(made, value)
                es.SteeringVectors(made, scales, {"n": number}).save_pretrained(tmp_path)
        except Exception as error:
            failed.append(error)

    es.SteeringVectors({i: torch.ones(64) for i in range(3)}, metadata={"n": 1}).save_pretrained(
        tmp_path
    )
    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        seen = set()
        for _ in range(20_000):
            read = es.SteeringVectors.from_pretrained(tmp_path)
            values = {float(v) for vector in read.vectors.values() for v in vector}
            assert values == set(read.scales.values()) == {float(read.metadata["n"])}
            seen |= values
            if len(seen) == 40 or failed:
                break
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failed == [] and len(seen) == 40


def test_states_beside_a_writer_are_one_save_or_refused(tmp_path):
    def save(value):
        labels = torch.tensor([0, 1, 0, 1])
        es.HiddenStates(torch.full((2, 4, 3), float(value)), labels).save_pretrained(tmp_path)

    save(0)
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            save(number := number + 1)

    writer = threading.Thread(target=write)
    writer.start()
    whole, refused = 0, 0
    try:
        for turn in range(400):
            stored = es.HiddenStates.open(tmp_path)
            try:
                parts = (
                    [stored.states[0], stored.states[1]]
                    if turn % 2
                    else [stored.take([0, 3]).states]
                )
            except es.ArtifactError as error:
                assert "changed after it was opened" in str(error) or "replaced" in str(error)
                refused += 1
                continue
            assert len({float(v) for part in parts for v in part.flatten()}) == 1
            whole += 1
    finally:
        stop.set()
        writer.join()
    assert whole and whole + refused == 400


def test_a_save_between_its_two_files_is_the_new_one_and_no_other_json_is_taken(tmp_path):
    """The tensor file names the json it replaces: an older one still is of another save."""
    jsons = []
    for note in ("first", "second", "third"):
        write_artifact(tmp_path, "thing", {"x": torch.ones(2)}, {"note": note})
        jsons.append((tmp_path / "thing.json").read_text())
    (tmp_path / "thing.json").write_text(jsons[1])
    assert read_artifact(tmp_path, "thing")[1]["note"] == "third"
    (tmp_path / "thing.json").write_text(jsons[0])
    with pytest.raises(es.ArtifactError, match="disagree on note"):
        read_artifact(tmp_path, "thing")
    (tmp_path / "thing.json").unlink()
    assert read_artifact(tmp_path, "thing")[1]["note"] == "third"
