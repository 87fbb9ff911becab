"""A capture into a folder: what `capture` gives, in shards, resumable, read layer by layer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import expertsteer as es
from expertsteer.states.shards import Shards
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import LAYERS, WIDTH, build
from helpers.passes import Seen
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

COUNT = 40


def rows(count=COUNT):
    """Texts of several lengths; every other two are a pair."""
    return [
        {"text": sentence(3 + i % 5, seed=i), "label": i % 2}
        | ({"pair": 7 * (i // 4)} if i % 4 < 2 else {})
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "contrast.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())))
    return path


@pytest.fixture(scope="module")
def whole(model, path):
    return es.capture(model, tiny_tokenizer(), es.ContrastSet.from_file(path), progress=False)


def capture(folder, model, contrast, tokenizer=None, **options):
    options = {"shard_examples": 8, "batch_size": 4, "progress": False} | options
    return es.capture_to(folder, model, tokenizer or tiny_tokenizer(), contrast, **options)


def test_a_folder_holds_what_capture_gives(model, path, whole, tmp_path):
    stored = capture(tmp_path / "a", model, path)
    assert stored.shape == (LAYERS, COUNT, WIDTH) and stored.dtype == torch.float32
    assert len(stored.paths) == 5 and stored.layers == whole.layers
    assert stored.model["architecture"] == "LlamaForCausalLM" and stored.width == WIDTH
    read = es.HiddenStates.open(tmp_path / "a").read()
    torch.testing.assert_close(read.states, whole.states)
    for name in ("labels", "keys", "pairs"):
        assert torch.equal(getattr(read, name), getattr(whole, name)), name
    in_memory = capture(tmp_path / "b", model, es.ContrastSet.from_file(path))
    assert torch.equal(in_memory.read().states, read.states)


def test_layers_and_rows_are_read_alone(model, path, tmp_path):
    stored = capture(tmp_path, model, path, layers=[0, 2], dtype="bfloat16", position="mean")
    read = stored.read()
    assert (
        stored.dtype == torch.bfloat16
        and stored.layers == (0, 2)
        and len(stored) == len(read) == COUNT
    )
    assert torch.equal(stored.states[1], read.states[1]) and torch.equal(
        stored.layer(2), read.layer(2)
    )
    assert stored.scale(2) == read.scale(2)
    chosen = [39, 0, 8, 7, -1]
    assert torch.equal(stored.take(chosen).states, read.states[:, chosen])
    assert torch.equal(stored.take(chosen).keys, read.keys[chosen])
    with pytest.raises(ValueError, match="layer 1 was not captured"):
        stored.layer(1)
    with pytest.raises(ValueError, match="rows: 40 is out of range for 40 examples"):
        stored.take([40])


def test_steps_read_the_folder_like_memory(model, path, tmp_path):
    stored = capture(tmp_path, model, path)
    held = stored.read()
    nats = es.mutual_information(stored, stored, components=4)
    assert torch.equal(nats, es.mutual_information(held, held, components=4))
    pairing = es.pair_layers(nats, k=2)
    maps = [es.align(s, s, "ridge", pairing=pairing) for s in (stored, held)]
    assert torch.equal(maps[0].encoder_weight, maps[1].encoder_weight)
    fits = [es.fit_vectors(s, s, m, pairing) for s, m in zip((stored, held), maps)]
    for layer in fits[0].layers:
        assert torch.equal(fits[0].vectors[layer], fits[1].vectors[layer])
    assert fits[0].scales == fits[1].scales


def test_what_is_there_is_not_computed_again(model, path, tmp_path):
    first = capture(tmp_path, model, path).read().states
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    for shard in (1, 4):
        Shards.open(tmp_path).path(shard).unlink()
    with pytest.raises(es.ArtifactError, match="3 of 5 shards .*missing is 1.*run the same"):
        es.HiddenStates.open(tmp_path)
    (tmp_path / ".states-00001.safetensors.x.tmp").write_text("half")  # as a killed process leaves
    with Seen(model) as seen:
        again = capture(tmp_path, model, path)
    assert seen.examples == 16 and torch.equal(again.read().states, first)
    assert not list(tmp_path.glob(".states*"))
    assert sum(p.stat().st_mtime_ns == t for p, t in kept.items()) == 3
    with Seen(model) as seen:
        capture(tmp_path, model, path, batch_size=16)  # which is no part of what is captured
    assert seen.examples == 0


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"position": "mean"}, "position: 'last' there, 'mean' asked for"),
        ({"layers": [0]}, r"layers: \(0, 1, 2\) there, \(0,\) asked for"),
        ({"dtype": "float16"}, "dtype: 'float32' there, 'float16' asked for"),
        ({"max_length": 3}, "max_length: None there, 3 asked for"),
        ({"shard_examples": 4}, "shard_examples: .* begun with 8, came 4"),
        ({"model": build("llama", seed=1)}, r"model \(fingerprint\)"),
        ({"model": build("gpt2")}, r"model \(architecture\)"),
        ({"contrast": es.ContrastSet.from_texts(["w1", "w2"], [0, 1])}, "contrast set"),
        ({"tokenizer": tiny_tokenizer(bos=False)}, "tokenizer"),
    ],
)
@pytest.mark.filterwarnings("ignore:max_length")
def test_another_capture_in_the_folder_is_refused(model, path, tmp_path, change, reason):
    capture(tmp_path, model, path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.suffix != ".lock"}
    with pytest.raises(es.ArtifactError, match=reason):
        capture(tmp_path, **{"model": model, "contrast": path} | change)
    assert files == {p: p.stat().st_mtime_ns for p in files}


def test_another_revision_is_refused_and_a_moved_folder_is_not(path, tmp_path, monkeypatch):
    for name in ("one", "two"):
        build("llama").save_pretrained(tmp_path / name)
    models = {
        name: type(build("llama")).from_pretrained(tmp_path / name) for name in ("one", "two")
    }
    capture(tmp_path / "out", models["one"], path)
    with Seen(models["two"]) as seen:
        capture(tmp_path / "out", models["two"], path)  # the same weights elsewhere
    assert seen.examples == 0
    monkeypatch.setattr(models["two"].config, "_commit_hash", "abc", raising=False)
    with pytest.raises(es.ArtifactError, match=r"model \(revision\): None there, 'abc' asked for"):
        capture(tmp_path / "out", models["two"], path)


def test_damaged_and_foreign_files_are_named(model, path, tmp_path):
    capture(tmp_path / "a", model, path)
    capture(tmp_path / "b", model, path, position="mean")
    shards = Shards.open(tmp_path / "a")
    whole = shards.path(2).read_bytes()
    shards.path(2).write_bytes(whole[:-9])
    with pytest.raises(es.ArtifactError, match="states-00002.safetensors: truncated.*delete it"):
        capture(tmp_path / "a", model, path)
    shards.path(2).write_bytes(Shards.open(tmp_path / "b").path(2).read_bytes())
    with pytest.raises(es.ArtifactError, match="states-00002.* belongs to another capture"):
        es.HiddenStates.open(tmp_path / "a")
    (tmp_path / "a" / "capture.json").write_text("{}")
    with pytest.raises(es.ArtifactError, match="capture.json has format None"):
        es.HiddenStates.open(tmp_path / "a")


def test_a_capture_begun_before_there_were_digests_goes_on(model, path, tmp_path):
    whole = capture(tmp_path, model, path).read().states
    shards = Shards.open(tmp_path)
    for shard in range(5):
        tensors = load_file(shards.path(shard))
        save_file(tensors, shards.path(shard), {"capture": f"{shards.manifest.number}/{shard}"})
    shards.path(1).unlink()
    manifest = tmp_path / "capture.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({n: v for n, v in document.items() if n != "number"}))
    with Seen(model) as seen, pytest.warns(UserWarning, match="4 of 5 shards were written before"):
        stored = capture(tmp_path, model, path)
    assert seen.examples == 8 and torch.equal(stored.read().states, whole)


def test_two_runs_do_not_write_one_folder(model, path, tmp_path):
    def again(*_):
        capture(tmp_path, model, path)

    hook = model.model.layers[0].register_forward_hook(again)
    with pytest.raises(es.ArtifactError, match="is being written by another process"):
        capture(tmp_path, model, path)
    hook.remove()
    capture(tmp_path, model, path)


def test_a_bad_example_keeps_what_was_written(model, tmp_path):
    texts = [sentence(3 + i % 5, seed=i) for i in range(20)]
    texts[17] = sentence(80)
    contrast = es.ContrastSet.from_texts(texts, [i % 2 for i in range(20)])
    with pytest.raises(ValueError, match="example 17 has 81 tokens.*max_length=64"):
        capture(tmp_path, model, contrast)
    assert Shards.open(tmp_path).missing() == [2]
    with pytest.raises(ValueError, match="position -5 is out of range for example 0, which has 4"):
        capture(tmp_path / "other", model, contrast, position=-5)
    with pytest.warns(UserWarning, match="max_length=4 cut 16 of 20") as caught:
        capture(tmp_path / "cut", model, contrast, max_length=4)
    assert caught[0].filename == __file__


def test_a_full_disk_is_noticed_before_the_start(model, path, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 2000}))
    with Seen(model) as seen, pytest.raises(es.ArtifactError, match="its disk has 2.0 KiB left"):
        capture(tmp_path, model, path)
    assert seen.examples == 0


def test_a_disk_that_fills_up_loses_nothing(model, path, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        if metadata["capture"].endswith("/3"):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("expertsteer.states.shards.save_file", full)
    with pytest.raises(es.ArtifactError, match="states-00003.* No space left .*run the same again"):
        capture(tmp_path, model, path)
    assert Shards.open(tmp_path).missing() == [3, 4] and not list(tmp_path.glob(".states*"))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"shard_examples": -1}, "shard_examples must be a positive integer or None, came -1"),
        ({"contrast": ["w1"]}, "contrast must be a ContrastSet, a ContrastStream or the path"),
        ({"contrast": "nowhere.jsonl"}, "there is none at nowhere.jsonl"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"position": "first"}, "position must be"),
    ],
)
def test_arguments_out_of_their_range_are_refused(model, path, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        capture(tmp_path, **{"model": model, "contrast": path} | options)


def test_the_command_line_says_what_it_will_take(path, tmp_path):
    save(build("llama"), tmp_path / "model")
    arguments = ["capture", "--model", tmp_path / "model", "--device", "cpu", "--out"]
    arguments += [tmp_path / "out", "--contrast", path, "--layers", "2,0"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "40 examples x 2 layers x 32 in float32: 10.9 KiB on disk" in done.stderr
    assert "21.9 KiB of states in memory" in done.stderr
    assert json.loads(run(*arguments, "--json").stdout)["layers"] == [0, 2]
    done = run(*arguments, "--position", "mean")
    assert done.returncode == 2 and "position: 'last' there, 'mean' asked for" in done.stderr
    done = run(*arguments, "--columns", "label")
    assert done.returncode == 2 and "columns must be field=column pairs" in done.stderr
