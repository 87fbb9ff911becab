"""Control vectors: files as llama.cpp and repeng read and write them, and repeng's objects."""

import dataclasses
import types

import numpy as np
import pytest
import torch

import expertsteer as es
from expertsteer.export.gguf import export_gguf, import_gguf
from expertsteer.export.repeng import ControlVector, from_repeng, to_repeng
from helpers.exported_vectors import FIRST, MADE, TARGET
from helpers.steered_models import llama, logits, tokens, vectors, with_plain_hooks

gguf = pytest.importorskip("gguf")


def same_displacements(a, b, factor=1.0):
    assert a.layers == b.layers
    for i in a.layers:
        torch.testing.assert_close(
            b.displacement(i).float(), factor * a.displacement(i).float(), rtol=3e-7, atol=0
        )


def foreign(path, tensors, architecture="controlvector", hint="llama"):
    """A file as repeng writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drawn(width=8, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(width).astype(dtype)


# GGUF


@pytest.mark.parametrize("strength", [1.0, -0.25])
def test_a_control_vector_holds_what_llama_cpp_reads(strength, tmp_path):
    path = export_gguf(MADE, tmp_path / "made.gguf", strength=strength)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 3
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.3", "direction.7"]
    for tensor in reader.tensors:
        layer = int(tensor.name.removeprefix("direction."))
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [33]
        expected = strength * MADE.scales[layer] * MADE.vectors[layer].double()
        np.testing.assert_array_equal(tensor.data, expected.float().numpy())


def test_a_control_vector_comes_back_with_scales_and_metadata(tmp_path):
    back = import_gguf(export_gguf(MADE, tmp_path / "a.gguf", strength=0.5))
    same_displacements(MADE, back, 0.5)
    assert back.scales == MADE.scales
    assert back.metadata["target"] == TARGET and back.metadata["note"] == "größer"
    again = import_gguf(export_gguf(back, tmp_path / "b.gguf"))
    same_displacements(back, again)


def test_layer_0_is_for_repeng_alone(tmp_path):
    with pytest.raises(ValueError, match="layer 0, and llama.cpp has no place .*select"):
        export_gguf(FIRST, tmp_path / "first.gguf")
    assert not list(tmp_path.iterdir())
    path = export_gguf(FIRST, tmp_path / "first.gguf", program="repeng")
    same_displacements(FIRST, import_gguf(path))


def test_a_file_of_repeng_is_read(tmp_path):
    arrays = {f"direction.{i}": drawn(seed=i) for i in (5, 1)}
    path = foreign(tmp_path / "theirs.gguf", arrays, hint="mistral")
    made = import_gguf(path)
    assert made.layers == (1, 5) and made.scales == {1: 1.0, 5: 1.0}
    assert made.metadata["model_hint"] == "mistral"
    for i in (1, 5):
        np.testing.assert_array_equal(made.vectors[i].numpy(), arrays[f"direction.{i}"])


def test_the_layer_convention_moves_every_layer_by_one(tmp_path):
    path = foreign(tmp_path / "a.gguf", {"direction.1": drawn(), "direction.4": drawn(seed=1)})
    assert import_gguf(path, layer_convention="zero_based").layers == (1, 4)
    assert import_gguf(path, layer_convention="one_based").layers == (0, 3)
    ours = export_gguf(MADE, tmp_path / "ours.gguf")
    with pytest.raises(ValueError, match="written by this package, whose layers count from 0"):
        import_gguf(ours, layer_convention="one_based")
    zero = foreign(tmp_path / "b.gguf", {"direction.0": drawn()})
    assert import_gguf(zero).layers == (0,)
    with pytest.raises(ValueError, match="layer 0 is below the first one"):
        import_gguf(zero, layer_convention="one_based")
    with pytest.raises(ValueError, match="layer_convention must be one of .*came 'theirs'"):
        import_gguf(path, layer_convention="theirs")


@pytest.mark.parametrize(
    "tensors, options, message",
    [
        ({"blk.0.weight": drawn()}, {}, "'blk.0.weight' is no direction.N"),
        ({"direction.x": drawn()}, {}, "'direction.x' is no direction.N"),
        ({"direction.1": drawn(16).reshape(2, 8)}, {}, r"shape \(2, 8\), expected one dimension"),
        ({"direction.1": np.arange(4, dtype=np.int32)}, {}, "stored as I32"),
        ({"direction.1": drawn(), "direction.2": drawn(9)}, {}, "share one width"),
        ({"direction.1": drawn(), "direction.01": drawn()}, {}, "two directions for layer 1"),
        ({"direction.1": np.full(4, np.nan, np.float32)}, {}, "must be finite"),
        ({"direction.1": np.zeros(4, np.float32)}, {}, "all zero"),
        ({}, {}, "at least one"),
        ({"direction.1": drawn()}, {"architecture": "llama"}, "'llama', expected 'controlvector'"),
    ],
)
def test_files_that_are_no_control_vector(tensors, options, message, tmp_path):
    path = foreign(tmp_path / "odd.gguf", tensors, **options)
    with pytest.raises(ValueError, match=message) as refused:
        import_gguf(path)
    assert "odd.gguf" in str(refused.value)


@pytest.mark.parametrize("kept", [0, 3, 40, 200, -40])
def test_a_control_vector_cut_short(kept, tmp_path):
    path = export_gguf(MADE, tmp_path / "made.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        es.ArtifactError, match="made.gguf: truncated, damaged or foreign GGUF file"
    ):
        import_gguf(path)


def test_half_precision_of_others_is_read_exactly(tmp_path):
    array = drawn(dtype=np.float16)
    made = import_gguf(foreign(tmp_path / "half.gguf", {"direction.2": array}))
    np.testing.assert_array_equal(made.vectors[2].numpy(), array.astype(np.float32))


# repeng's objects


def test_an_object_of_repeng_out_and_back():
    control = to_repeng(MADE, strength=2.0)
    assert isinstance(control, ControlVector) and control.model_type == "llama"
    assert list(control.directions) == [1, 3, 7]
    assert {a.dtype for a in control.directions.values()} == {np.dtype(np.float32)}
    same_displacements(MADE, from_repeng(control), 2.0)
    same_displacements(FIRST, from_repeng(to_repeng(FIRST)))  # block 0 has its place


def test_any_class_of_that_shape_will_do():
    @dataclasses.dataclass
    class Theirs:
        model_type: str
        directions: dict

    control = to_repeng(MADE, model_type="mistral", factory=Theirs)
    assert isinstance(control, Theirs) and control.model_type == "mistral"
    loose = types.SimpleNamespace(directions={np.int64(2): drawn(dtype=np.float64)})
    made = from_repeng(loose)
    assert made.layers == (2,) and made.vectors[2].dtype == torch.float64
    assert from_repeng(loose, layer_convention="one_based").layers == (1,)


def test_layers_are_the_blocks_that_repeng_wraps():
    model, ids = llama(), tokens()
    some = vectors(layers=(0, 2))
    mask = torch.ones(ids.shape)
    hooks = with_plain_hooks(model, some, 0.5, mask)
    expected = logits(model, ids)
    for hook in hooks:
        hook.remove()
    control = to_repeng(some, strength=0.5)
    blocks = list(model.model.layers)
    for i, direction in control.directions.items():
        # The wrapper stands in for the block's forward, as repeng's stands in for the block.
        forward = blocks[i].forward
        blocks[i].forward = lambda *a, f=forward, d=direction, **k: f(*a, **k) + torch.from_numpy(d)
    torch.testing.assert_close(logits(model, ids), expected)


@pytest.mark.parametrize(
    "control, message",
    [
        (object(), "must have directions .*came object"),
        (types.SimpleNamespace(directions=[drawn()]), "must have directions"),
        (types.SimpleNamespace(directions={"1": drawn()}), "whole numbers, came '1'"),
        (types.SimpleNamespace(directions={True: drawn()}), "whole numbers, came True"),
        (types.SimpleNamespace(directions={-1: drawn()}), "layer -1 is below the first"),
        (types.SimpleNamespace(directions={1: drawn(4).reshape(2, 2)}), r"shape \(2, 2\)"),
        (types.SimpleNamespace(directions={1: np.ones(4, int)}), "floating-point"),
        (types.SimpleNamespace(directions={}), "at least one"),
    ],
)
def test_objects_that_are_no_control_vector(control, message):
    with pytest.raises(ValueError, match=message):
        from_repeng(control)


def test_a_class_that_changes_the_directions_is_noticed():
    def rounds(model_type, directions):
        return ControlVector(model_type, {i: np.round(d) for i, d in directions.items()})

    with pytest.raises(es.ArtifactError, match="read back with other vectors"):
        to_repeng(MADE, factory=rounds)
