"""What is loaded is what was saved: changed, foreign and old files, readers beside writers."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import expertsteer as es
from expertsteer.states.shards import Shards
from expertsteer.support.artifact_files import read_artifact, write_artifact
from expertsteer.support.digests import digest
from expertsteer.support.reading import read_text
from helpers.artefacts import ARTEFACTS, captured, drawn, states, told


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_no_byte_of_the_tensors_can_change_unseen(kind, tmp_path):
    make, read = ARTEFACTS[kind]
    make().save_pretrained(tmp_path)
    path = tmp_path / f"{kind}.safetensors"
    data = path.read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    for place in range(first, len(data), 1 if len(data) - first < 400 else 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(es.ArtifactError, match=f"{kind}.safetensors: tensor .* digest differs"):
            read(tmp_path)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_the_tensor_file_of_another_save_is_refused(kind, tmp_path):
    make, read = ARTEFACTS[kind]
    make().save_pretrained(tmp_path / "a")
    tensors, header = read_artifact(tmp_path / "a", kind)
    other = {n: t + 1 if t.is_floating_point() else t for n, t in tensors.items()}
    header.pop("digests")
    write_artifact(tmp_path / "b", kind, other, header)
    for ending in ("json", "safetensors"):  # either of the two, from b beside the other of a
        mixed = shutil.copytree(tmp_path / "a", tmp_path / f"mixed-{ending}")
        shutil.copy(tmp_path / "b" / f"{kind}.{ending}", mixed)
        with pytest.raises(es.ArtifactError, match="disagree on digests"):
            read(mixed)


def as_before_digests(folder, kind):
    """The two files as earlier versions wrote them."""
    import hashlib

    path, beside = folder / f"{kind}.safetensors", folder / f"{kind}.json"
    tensors, document = load_file(path), json.loads(beside.read_text())
    document = {n: v for n, v in document.items() if n not in ("digests", "sha256")}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    save_file(tensors, path, metadata={"document": text})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside.write_text(json.dumps(document | {"sha256": digest}, indent=2) + "\n")


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_old_artefacts_load_and_are_checked_as_a_whole(kind, tmp_path):
    make, read = ARTEFACTS[kind]
    make().save_pretrained(tmp_path)
    whole = told(read(tmp_path))
    as_before_digests(tmp_path, kind)
    assert told(read(tmp_path)) == whole
    path, beside = tmp_path / f"{kind}.safetensors", tmp_path / f"{kind}.json"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(es.ArtifactError, match=f"truncated, or not the file .* delete {kind}.json"):
        read(tmp_path)
    path.write_bytes(data)
    text = beside.read_text()
    beside.write_text(text.replace('"format_version": 1', '"format_version": 1, "x": 2'))
    with pytest.raises(es.ArtifactError, match="disagree on x"):
        read(tmp_path)
    beside.unlink()  # the way out, which is not silent
    with pytest.warns(UserWarning, match="written before digests were kept in it") as warned:
        assert told(read(tmp_path)) == whole
    assert warned[0].filename == __file__


def test_old_states_are_read_from_disk_and_a_replaced_file_is_noticed(tmp_path):
    states().save_pretrained(tmp_path)
    as_before_digests(tmp_path, "hidden_states")
    stored = es.HiddenStates.open(tmp_path)
    assert torch.equal(stored.read().states, states().states)
    stored.verify()
    states().save_pretrained(tmp_path)
    with pytest.raises(es.ArtifactError, match="was replaced after it was opened"):
        stored.states[0]


def test_old_shards_are_read_with_a_warning(tmp_path):
    captured(tmp_path)
    whole = es.HiddenStates.open(tmp_path).read()
    for shard in range(3):
        path = Shards.open(tmp_path).path(shard)
        with safe_open(path, "pt") as stream:
            about = {"capture": stream.metadata()["capture"]}
        save_file(load_file(path), path, metadata=about)
    with pytest.raises(es.ArtifactError, match="lacks the digests of its contents"):
        es.HiddenStates.open(tmp_path)
    manifest = tmp_path / "capture.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({n: v for n, v in document.items() if n != "number"}))
    with pytest.warns(
        UserWarning, match="3 of 3 shards were written before digests were kept"
    ) as warned:
        again = es.HiddenStates.open(tmp_path)
    assert torch.equal(again.read().states, whole.states) and warned[0].filename == __file__


@pytest.mark.parametrize("name", ["states", "labels", "keys", "pairs"])
def test_a_changed_byte_of_a_shard_is_an_error_where_it_is_read(name, tmp_path):
    captured(tmp_path)
    path = Shards.open(tmp_path).path(1)
    with safe_open(path, "pt") as stream:
        about = stream.metadata()
    tensors = load_file(path)
    tensors[name].view(torch.uint8).view(-1)[-1] ^= 1  # of the last layer
    save_file(tensors, path, metadata=about)
    stored = es.HiddenStates.open(tmp_path)  # names, shapes and types are right
    refused = pytest.raises(es.ArtifactError, match=f"states-00001.* tensor '{name}' is not the")
    with refused:
        stored.verify()
    if name == "states":
        assert stored.states[0].shape == (10, 5)  # its other layer is whole
        assert stored.take([0, 9]).states.shape == (2, 2, 5)  # and so are the other shards
        for read in (lambda: stored.states[1], lambda: stored.layer(2), lambda: stored.take([5])):
            with refused:
                read()
    else:
        with refused:
            getattr(stored, name)


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    captured(tmp_path)
    path = tmp_path / "capture.json"
    path.write_text(path.read_text().replace('"name": "m"', '"name": "n"'))
    with pytest.raises(es.ArtifactError, match="capture.json was changed"):
        es.HiddenStates.open(tmp_path)


def test_a_shard_is_checked_again_once_it_was_replaced(tmp_path):
    captured(tmp_path)
    stored = es.HiddenStates.open(tmp_path)
    stored.verify()
    path = stored.paths[0]
    with safe_open(path, "pt") as stream:
        about = stream.metadata()
    save_file(load_file(path) | {"states": drawn(2, 4, 5, dtype=torch.bfloat16) + 1}, path, about)
    for read in (lambda: stored.states[0], lambda: stored.take([1])):
        with pytest.raises(es.ArtifactError, match="tensor 'states' is not the one"):
            read()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    made = es.SteeringVectors({0: torch.ones(2)}, metadata={"a": {1: "x", "1": "y"}})
    with pytest.raises(es.ArtifactError, match="'1' stands twice"):
        made.save_pretrained(tmp_path / "v")
    with pytest.raises(es.ArtifactError, match="surrogates not allowed"):
        es.SteeringVectors({0: torch.ones(2)}, metadata={"a": "\ud800"}).save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_vectors_of_one_layer_are_refused():
    one, other = torch.tensor(1), torch.tensor(1)  # two keys, one layer
    with pytest.raises(ValueError, match="two of these are the same layer"):
        es.SteeringVectors({one: torch.ones(2), other: torch.zeros(2)})
    with pytest.raises(ValueError, match="one number for each layer"):
        es.SteeringVectors({1: torch.ones(2)}, {"1": 2.0, "01": 3.0})


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    captured(tmp_path)
    opened = open

    def forbidden(path, *arguments, **options):
        if str(path).endswith("states-00001.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(es.ArtifactError, match="states-00001.* cannot be read: Permission") as told:
        es.HiddenStates.open(tmp_path)
    assert "delete" not in str(told.value) and "damaged" not in str(told.value)


@pytest.mark.parametrize("there", ["nothing", "a folder"])
def test_what_is_no_file_is_not_said_to_be_a_broken_disk(there, tmp_path):
    path = tmp_path / "texts.txt"
    if there == "a folder":
        path.mkdir()
    with pytest.raises(es.ArtifactError, match="cannot be read: .*(check the path|name a file)$"):
        read_text(path)


@pytest.mark.parametrize("layers", [[0, 0, 1], [2, 1, 0], [-1, 0, 1], []], ids=str)
def test_layers_that_stand_twice_are_refused_where_states_stay_on_disk(layers, tmp_path):
    made = states()
    header = {"layers": layers, "position": "last", "model": {}}
    tensors = {"states": made.states, "labels": made.labels}
    write_artifact(tmp_path, "hidden_states", tensors, header, by_layer=["states"])
    for read in (es.HiddenStates.open, es.HiddenStates.from_pretrained):
        with pytest.raises(es.ArtifactError, match="field 'layers' must be increasing indices"):
            read(tmp_path)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (3, 0), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_a_digest_is_of_the_entries_however_they_lie_in_memory(shape, dtype):
    laid = torch.ones(shape, dtype=dtype)
    spread = torch.ones((), dtype=dtype).expand(shape)
    assert digest(laid) == digest(spread) == digest(laid.mT.contiguous().mT if shape[1:] else laid)
    assert digest(laid) != digest(laid.unsqueeze(0)) and digest(laid) != digest(laid.double())
