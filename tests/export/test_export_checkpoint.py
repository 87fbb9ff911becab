"""A steered checkpoint written from files to files: plain transformers gives the steered logits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import expertsteer as es
from expertsteer.export import tensor_files as _tensor_files
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.families import families_table
from expertsteer.folding.permanent import CHECKPOINTS, fold_permanently
from helpers.families import FAMILIES, build_or_skip, weights_type
from helpers.folded_models import (
    CONVERTED_TO,
    EVERY,
    VARIANTS,
    build_case,
    hooked_logits,
    relative_error,
    vectors_for,
)
from helpers.steered_models import llama, logits
from helpers.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.transformers

IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(5))
SHARDED = "model.safetensors.index.json"


def load(folder, **settings):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **weights_type("auto"), **settings
    )
    assert {kind: list(keys) for kind, keys in info.items() if keys} == {}
    return model.eval()


def saved(model, folder, shard_size="12KB"):
    model.save_pretrained(folder, max_shard_size=shard_size)
    assert (folder / SHARDED).is_file() == (shard_size != "5GB")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama checkpoint in several shards with everything that may lie beside its weights."""
    folder = tmp_path_factory.mktemp("source") / "base"
    model = llama()
    model.generation_config.top_k = 7
    model.generation_config.do_sample = True
    saved(model, folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "README.md").write_text("---\nlicense: mit\nlicense_link: x\n---\n# Base\n")
    (folder / "LICENSE").write_text("as the base says")
    (folder / "notes").mkdir()
    (folder / "notes" / "more.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"the unsteered model again")
    return folder


VECTORS = vectors_for(llama(), layers=(1, 3))


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "steered"
    return export_checkpoint(source, VECTORS, out, strength=0.7)


@pytest.mark.parametrize(
    "case, dtype",
    [(case, torch.float32) for case in [*CHECKPOINTS, *VARIANTS]]
    + [(case, torch.bfloat16) for case in CHECKPOINTS],
    ids=str,
)
def test_the_reloaded_checkpoint_gives_the_steered_logits(case, dtype, monkeypatch, tmp_path):
    model = build_case(monkeypatch, case)
    saved(model.to(dtype), tmp_path / "base", "5GB" if case in VARIANTS else "12KB")
    # Loaded in its type, as users do: a model that is cast rounds its rotary tables too.
    model = load(tmp_path / "base")
    vectors = vectors_for(model)
    export = export_checkpoint(tmp_path / "base", vectors, tmp_path / "out", strength=0.7)
    made = load(tmp_path / "out")
    # Some families keep a few weights in single precision.
    kept = {p.dtype for p in model.parameters()}
    assert dtype in kept and {p.dtype for p in made.parameters()} == kept
    assert made.config.model_type == export.written_as
    assert export.written_as == CONVERTED_TO.get(case, model.config.model_type)
    assert export.family == model.config.model_type
    result, plain = logits(made, IDS), logits(model, IDS)
    with es.attach(model, vectors, strength=0.7):
        expected = logits(model, IDS)
    rounding = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 has 8 bits
    assert relative_error(result, expected) < rounding
    assert relative_error(plain, expected) > 5 * rounding
    # To the last bit it is the model that is folded in memory.
    folded = fold_permanently(model, vectors, 0.7)
    assert torch.equal(result, logits(folded, IDS))
    state, wanted = made.state_dict(), folded.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in state)


def test_shards_names_and_bytes_stay(source, exported):
    before, after = (json.loads((f / SHARDED).read_text()) for f in (source, exported.folder))
    assert len(exported.shards) > 3
    for name, shard in before["weight_map"].items():
        assert after["weight_map"][name] == shard
        with (
            safe_open(source / shard, "pt") as old,
            safe_open(exported.folder / shard, "pt") as new,
        ):
            assert torch.equal(old.get_tensor(name), new.get_tensor(name))
            assert new.metadata() == old.metadata()
    added = set(after["weight_map"]) - set(before["weight_map"])
    assert added == set(exported.changed) and len(added) == 3 * 4  # three biases, four layers
    for name in added:  # beside the weight they belong to
        assert after["weight_map"][name] == before["weight_map"][name[:-4] + "weight"]
    sizes = [
        sum(t.nbytes for shard in exported.shards for t in load_file(folder / shard).values())
        for folder in (source, exported.folder)
    ]
    assert after["metadata"]["total_size"] - before["metadata"]["total_size"] == sizes[1] - sizes[0]
    assert exported.tensors == len(after["weight_map"])


def test_only_the_steered_layers_have_a_bias_that_is_not_zero(exported):
    state = load(exported.folder).state_dict()
    biases = {name: bool(state[name].any()) for name in exported.changed}
    assert {name for name, some in biases.items() if some} == {
        "model.layers.1.mlp.down_proj.bias",
        "model.layers.3.mlp.down_proj.bias",
    }


def test_everything_else_comes_along(source, exported):
    folder = exported.folder
    same = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in [*same, "chat_template.jinja", "LICENSE", "notes/more.txt"]:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert exported.left_out == ("pytorch_model.bin",)
    assert not (folder / "pytorch_model.bin").exists()
    old, new = (json.loads((f / "config.json").read_text()) for f in (source, folder))
    assert new == old | {"mlp_bias": True}
    made = load(folder)
    assert (made.generation_config.top_k, made.generation_config.do_sample) == (7, True)
    assert (folder / "README.base_model.md").read_text() == (source / "README.md").read_text()
    assert not list(folder.parent.glob(".*"))


def test_the_card_says_what_was_done(exported):
    card = (exported.folder / "README.md").read_text()
    head = card.split("---")[1]
    assert "license: mit" in head and "license_link: x" in head
    assert "library_name: transformers" in head
    for part in ("`base`", "| 1, 3 |", "| strength | 0.7 |", VECTORS.fingerprint, "mlp_bias=True"):
        assert part in card
    assert "licence of the base model applies" in card
    assert str(exported.folder.parent) not in card


def test_the_check_of_the_card_passes(source, exported, tmp_path, capsys):
    VECTORS.save_pretrained(tmp_path)
    card = (exported.folder / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    code = code.replace('"base"', repr(str(source)))
    code = code.replace("<this folder>", str(exported.folder))
    exec(code.replace("<folder of the vectors>", str(tmp_path)), {})
    value = capsys.readouterr().out.strip()
    assert value.startswith("tensor(") and float(value[7:-1]) < 1e-5


def test_an_export_can_be_exported_again(exported, tmp_path):
    more = vectors_for(llama(), layers=(1, 2), seed=12)
    again = export_checkpoint(exported.folder, more, tmp_path / "twice")
    expected = hooked_logits(llama(), 0.7 * VECTORS + more, IDS)
    assert relative_error(logits(load(again.folder), IDS), expected) < 1e-5
    assert len(again.changed) == 2  # the biases are there already
    cards = sorted(path.name for path in again.folder.glob("README*"))
    assert cards == ["README.base_model.2.md", "README.base_model.md", "README.md"]


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_weights_without_the_outermost_prefix_are_found(name, tmp_path):
    # As many of the older checkpoints on the Hub are.
    model = build_or_skip(name)
    saved(model, tmp_path / "base", "5GB")
    path = tmp_path / "base" / "model.safetensors"
    prefix = model.base_model_prefix + "."
    state = {n.removeprefix(prefix): t for n, t in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    try:
        base = load(tmp_path / "base")
    except ValueError as refused:
        pytest.skip(f"{name} does not load so in this transformers: {refused}")
    vectors = vectors_for(model)
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stream:
        assert not any(n.startswith(prefix) for n in stream.keys())  # noqa: SIM118
    expected = hooked_logits(base, vectors, IDS)
    assert relative_error(logits(load(tmp_path / "out"), IDS), expected) < 1e-5


def test_a_single_file_goes_before_shards_beside_it(source, tmp_path):
    shutil.copytree(source, tmp_path / "both")
    other = llama(seed=3)
    other.save_pretrained(tmp_path / "both")
    for name in (SHARDED, "model-00001-of-00005.safetensors"):
        shutil.copy(next(source.glob(name.replace("00005", "*"))), tmp_path / "both" / name)
    expected = load(tmp_path / "both")  # what transformers takes
    assert torch.equal(logits(expected, IDS), logits(other, IDS))
    made = export_checkpoint(tmp_path / "both", VECTORS, tmp_path / "out")
    assert made.shards == ("model.safetensors",) and not (tmp_path / "out" / SHARDED).exists()
    assert any(name.startswith("model-00001") for name in made.left_out)
    expected = hooked_logits(other, VECTORS, IDS)
    assert relative_error(logits(load(tmp_path / "out"), IDS), expected) < 1e-5


@pytest.mark.parametrize("both", [False, True], ids=["embedding alone", "both stored"])
@pytest.mark.parametrize("case", ["llama tied", "qwen2 tied"])
def test_tied_embeddings_stay_tied(case, both, monkeypatch, tmp_path):
    model = build_case(monkeypatch, case)
    saved(model, tmp_path / "base", "5GB")
    path = tmp_path / "base" / "model.safetensors"
    state = load_file(path)
    assert "lm_head.weight" not in state
    if both:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        save_file(state, path, metadata={"format": "pt"})
    vectors = vectors_for(model)
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    made = load(tmp_path / "out")
    assert made.lm_head.weight is made.get_input_embeddings().weight
    assert relative_error(logits(made, IDS), hooked_logits(model, vectors, IDS)) < 1e-5


@pytest.mark.parametrize("named", [False, True], ids=["no class named", "class named"])
def test_a_converted_model_keeps_its_tokenizer(named, tmp_path):
    saved(build_or_skip("qwen2"), tmp_path / "base", "5GB")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if not named:
        settings.pop("tokenizer_class", None)
        path.write_text(json.dumps(settings))
    export_checkpoint(tmp_path / "base", vectors_for(build_or_skip("qwen2")), tmp_path / "out")
    old, new = (AutoTokenizer.from_pretrained(tmp_path / f) for f in ("base", "out"))
    assert type(new) is type(old)
    text = "w1 w2 w3, w4"
    assert new(text).input_ids == old(text).input_ids


def test_a_tokenizer_that_would_change_is_an_error(tmp_path, monkeypatch):
    saved(build_or_skip("qwen2"), tmp_path / "base", "5GB")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="names no tokenizer_class.*cannot be loaded"):
        export_checkpoint(tmp_path / "base", vectors_for(build_or_skip("qwen2")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_memory_stays_far_below_the_size_of_the_checkpoint(tmp_path):
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("the peak of resident memory can be reset on Linux only")

    def peak():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    model = llama(vocab_size=60, intermediate_size=1 << 17)  # four layers, 201 MB in all
    size = sum(p.nbytes for p in model.parameters())
    saved(model, tmp_path / "base", "60MB")
    vectors = vectors_for(model, layers=(1, 2))
    del model
    small = llama()
    saved(small, tmp_path / "small")
    export_checkpoint(tmp_path / "small", vectors_for(small), tmp_path / "first")  # imports
    reset.write_text("5")
    before = peak()
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    assert size > 190e6
    assert peak() - before < size / 6


def test_a_hub_id_is_downloaded(source, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    export = export_checkpoint("owner/model", VECTORS, tmp_path / "out", revision="v1")
    assert (asked["repo_id"], asked["revision"]) == ("owner/model", "v1")
    assert "*.bin" in asked["ignore_patterns"] and "*.safetensors" not in asked["ignore_patterns"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: owner/model" in card and "`v1`" in card
    assert export.base_model == "owner/model"


def test_strength_auto_needs_a_calibration(source, tmp_path):
    with pytest.raises(ValueError, match="hold no calibration"):
        export_checkpoint(source, VECTORS, tmp_path / "out", strength="auto")


# Refusals, after which nothing is there.


def edited(source, folder, **config):
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised .*then quantise the exp"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a LlamaForSequenceClass"),
        ({"model_type": "nobody"}, "makes no causal language model .*nobody"),
        ({"hidden_size": 64}, "has shape .* different models"),
        ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, "norm follows"),
    ],
)
def test_a_configuration_that_cannot_be_exported(change, message, source, tmp_path):
    folder = edited(source, tmp_path / "odd", **change)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(folder, VECTORS, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd"]


def only_pickled(folder):
    for path in folder.glob("model*"):
        path.unlink()


def one_shard_less(folder):
    next(folder.glob("model-00002*")).unlink()


def a_shard_cut_short(folder):
    path = next(folder.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:-40])


def no_header(folder):
    next(folder.glob("model-00002*")).write_bytes(b"\xff" * 200)


def bad_index(folder):
    (folder / SHARDED).write_text('{"weight_map": {"a": "../../b.safetensors"}}')


def no_config(folder):
    (folder / "config.json").unlink()


def torn_config(folder):
    (folder / "config.json").write_text("{")


def an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def renamed(folder):
    index = json.loads((folder / SHARDED).read_text())
    shard = index["weight_map"]["model.layers.1.mlp.down_proj.weight"]
    state = load_file(folder / shard)
    state["strange"] = state.pop("model.layers.1.mlp.down_proj.weight")
    save_file(state, folder / shard, metadata={"format": "pt"})


def in_bytes(folder):
    index = json.loads((folder / SHARDED).read_text())
    shard = index["weight_map"]["model.layers.1.mlp.down_proj.weight"]
    state = load_file(folder / shard)
    name = "model.layers.1.mlp.down_proj.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    save_file(state, folder / shard, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage, message",
    [
        (only_pickled, r"only pickled weights \(pytorch_model.bin\).*save_pretrained"),
        (one_shard_less, "lacks model-00002"),
        (a_shard_cut_short, "model-00002.*truncated, damaged"),
        (no_header, "model-00002.*truncated, damaged"),
        (bad_index, "no readable weight_map"),
        (no_config, "holds no config.json"),
        (torn_config, "config.json: truncated, damaged"),
        (an_adapter, "is an adapter.*merge"),
        (renamed, "no tensor 'model.layers.1.mlp.down_proj.weight'.*save_pretrained"),
        (in_bytes, "quantised"),
    ],
)
def test_a_folder_that_cannot_be_exported(damage, message, source, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(source, folder)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(folder, VECTORS, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd"]


@pytest.mark.parametrize(
    "wrong, options, message",
    [
        (es.SteeringVectors({1: torch.ones(8)}), {}, "vectors have width 8"),
        (es.SteeringVectors({4: torch.ones(32)}), {}, "layer 4 is out of range"),
        (es.SteeringVectors({1: torch.zeros(32)}), {}, "all zero"),
        (es.SteeringVectors({1: torch.ones(32)}, {}, {"target": {"num_layers": 9}}), {}, "num_la"),
        (VECTORS, {"strength": float("nan")}, "strength must be a finite number"),
        (VECTORS, {"strength": 1e39}, "would not be finite in torch.float32"),
        ({1: torch.ones(32)}, {}, "vectors must be SteeringVectors, came dict"),
    ],
)
def test_bad_arguments_write_nothing(wrong, options, message, source, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(source, wrong, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(source, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export_checkpoint(source, VECTORS, tmp_path)
    with pytest.raises(ValueError, match="no folder of that name, and it is no Hub id"):
        export_checkpoint(tmp_path / "nobody", VECTORS, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    from expertsteer.export import checkpoint

    def fails(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "copy_others", fails)
    with pytest.raises(ValueError, match="cannot be written: no space left"):
        export_checkpoint(source, VECTORS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_returns_other_bytes_is_noticed(source, tmp_path, monkeypatch):
    from expertsteer.export import checkpoint

    def flips_a_bit(path, tensors, metadata):
        digests = _tensor_files.write_tensors(path, tensors, metadata)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return digests

    monkeypatch.setattr(checkpoint, "write_tensors", flips_a_bit)
    with pytest.raises(ValueError, match="read back different"):
        export_checkpoint(source, VECTORS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_types_and_odd_shapes_survive_the_writer(tmp_path):
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(5, 1, 3).to(torch.bfloat16),
        "c": torch.randn(7, dtype=torch.float64),
        "é": torch.tensor(2.5, dtype=torch.float16),
        "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "in", metadata={"format": "pt", "by": "me"})
    stored, metadata = _tensor_files.read_header(tmp_path / "in")
    new = {"new": _tensor_files.NewTensor(torch.randn(5, 3).T)}
    _tensor_files.write_tensors(tmp_path / "out", stored | new, metadata)
    loaded = load_file(tmp_path / "out")
    for name, tensor in (tensors | {"new": new["new"].tensor}).items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    with safe_open(tmp_path / "out", "pt") as stream:
        assert stream.metadata() == {"format": "pt", "by": "me"}


def test_the_table_of_families_names_them_all():
    table = families_table()
    for name, how in CHECKPOINTS.items():
        assert f"| `{name}` | {how} |" in table
    assert set(EVERY) >= set(FAMILIES)
    assert "gemma2" in table and "norm follows" in table
