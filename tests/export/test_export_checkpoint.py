"""A steered checkpoint written from files to files: plain transformers gives the steered logits."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import expertsteer as es
from expertsteer.export import tensor_files
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.families import families_table
from expertsteer.folding.permanent import CHECKPOINTS, fold_permanently
from helpers.checkpoints import SHARDED, load, saved
from helpers.exported_vectors import IDS, WRITTEN
from helpers.families import FAMILIES
from helpers.folded_models import (
    CONVERTED_TO,
    EVERY,
    VARIANTS,
    build_case,
    hooked_logits,
    relative_error,
    vectors_for,
)
from helpers.memory import RESET, peak, start_again
from helpers.steered_models import llama, logits

pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "steered"
    return export_checkpoint(source, WRITTEN, out, strength=0.7)


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
    for part in ("`base`", "| 1, 3 |", "| strength | 0.7 |", WRITTEN.fingerprint, "mlp_bias=True"):
        assert part in card
    assert "licence of the base model applies" in card
    assert str(exported.folder.parent) not in card


def test_the_check_of_the_card_passes(source, exported, tmp_path, capsys):
    WRITTEN.save_pretrained(tmp_path)
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
    expected = hooked_logits(llama(), 0.7 * WRITTEN + more, IDS)
    assert relative_error(logits(load(again.folder), IDS), expected) < 1e-5
    assert len(again.changed) == 2  # the biases are there already
    cards = sorted(path.name for path in again.folder.glob("README*"))
    assert cards == ["README.base_model.2.md", "README.base_model.md", "README.md"]


def test_memory_stays_far_below_the_size_of_the_checkpoint(tmp_path):
    if not RESET.exists():
        pytest.skip("the peak of resident memory can be reset on Linux only")

    model = llama(vocab_size=60, intermediate_size=1 << 17)  # four layers, 201 MB in all
    size = sum(p.nbytes for p in model.parameters())
    saved(model, tmp_path / "base", "60MB")
    vectors = vectors_for(model, layers=(1, 2))
    del model
    small = llama()
    saved(small, tmp_path / "small")
    export_checkpoint(tmp_path / "small", vectors_for(small), tmp_path / "first")  # imports
    start_again()
    before = peak()
    export_checkpoint(tmp_path / "base", vectors, tmp_path / "out")
    assert size > 190e6
    assert peak() - before < size / 6


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
    stored, metadata = tensor_files.read_header(tmp_path / "in")
    new = {"new": tensor_files.NewTensor(torch.randn(5, 3).T)}
    tensor_files.write_tensors(tmp_path / "out", stored | new, metadata)
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
