"""Vectors in numpy's archives, out and back in, and what no writer of vectors takes."""

import numpy as np
import pytest
import torch

import expertsteer as es
from expertsteer.export.gguf import export_gguf, import_gguf
from expertsteer.export.npz import export_npz, import_npz
from expertsteer.export.repeng import to_repeng
from helpers.exported_vectors import FIRST, MADE, TARGET

pytest.importorskip("gguf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_an_archive_keeps_every_bit(dtype, tmp_path):
    made = es.SteeringVectors(
        {i: v.to(dtype) for i, v in FIRST.vectors.items()}, FIRST.scales, {"note": "x"}
    )
    back = import_npz(export_npz(made, tmp_path / "made.npz"))
    assert back.scales == made.scales and back.metadata["note"] == "x"
    assert back.fingerprint == made.fingerprint
    for i in made.layers:
        assert back.vectors[i].dtype == dtype and torch.equal(back.vectors[i], made.vectors[i])


def test_mixed_types_are_kept(tmp_path):
    made = es.SteeringVectors({1: torch.rand(3), 2: torch.rand(3, dtype=torch.float64)})
    back = import_npz(export_npz(made, tmp_path / "made.npz"))
    assert [v.dtype for v in back.vectors.values()] == [torch.float32, torch.float64]
    assert all(torch.equal(back.vectors[i], made.vectors[i]) for i in (1, 2))


def test_numpy_alone_can_use_the_archive(tmp_path):
    path = export_npz(MADE, tmp_path / "made.npz")
    with np.load(path, allow_pickle=False) as archive:
        assert archive["layers"].tolist() == [1, 3, 7]
        for k, layer in enumerate(archive["layers"]):
            np.testing.assert_allclose(
                archive["scales"][k] * archive["vectors"][k],
                MADE.displacement(int(layer)).numpy(),
                rtol=1e-6,
            )


def test_an_archive_by_hand_needs_layers_and_vectors_only(tmp_path):
    np.savez(tmp_path / "hand.npz", layers=[4, 2], vectors=np.eye(2, 5))
    made = import_npz(tmp_path / "hand.npz")
    assert made.layers == (2, 4) and made.scales == {2: 1.0, 4: 1.0}
    assert made.vectors[4].argmax() == 0


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"layers": [1]}, "has no array 'vectors'"),
        ({"vectors": np.ones((1, 3))}, "has no array 'layers'"),
        ({"layers": [1.5], "vectors": np.ones((1, 3))}, "'layers' must be whole numbers"),
        ({"layers": [1], "vectors": np.ones(3)}, "'vectors' must be floating point with 2"),
        ({"layers": [1, 2], "vectors": np.ones((1, 3))}, "one entry per layer, came 2, 1"),
        ({"layers": [-1], "vectors": np.ones((1, 3))}, "layers count from 0"),
        ({"layers": [1], "vectors": np.full((1, 3), np.inf)}, "must be finite"),
        ({"layers": [1], "vectors": np.ones((1, 3)), "scales": [-1.0]}, "scales must be positive"),
        (
            {"layers": [1], "vectors": np.ones((1, 3)), "document": np.array("{")},
            "'document': truncated",
        ),
        ({"layers": [1], "vectors": np.array([[None]])}, "allow_pickle"),
    ],
)
def test_archives_that_hold_no_vectors(arrays, message, tmp_path):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ValueError, match=message) as refused:
        import_npz(tmp_path / "odd.npz")
    assert "odd.npz" in str(refused.value)


@pytest.mark.parametrize("kept", [0, 30, -30])
def test_an_archive_cut_short(kept, tmp_path):
    path = export_npz(MADE, tmp_path / "made.npz")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(es.ArtifactError, match="made.npz: (truncated, damaged|its arrays are not)"):
        import_npz(path)


# What all of them refuse


WRITERS = {
    "gguf": lambda v, path, **o: export_gguf(v, path / "x.gguf", **o),
    "repeng": lambda v, path, **o: to_repeng(v, **o),
    "npz": lambda v, path, **o: export_npz(v, path / "x.npz", **o),
}


@pytest.mark.parametrize(
    "wrong, options, message, writers",
    [
        ({1: torch.ones(3)}, {}, "must be SteeringVectors, came dict", WRITERS),
        (es.SteeringVectors({1: torch.zeros(3)}), {}, "all zero", WRITERS),
        (es.SteeringVectors({8: torch.ones(3)}, {}, {"target": TARGET}), {}, "layer 8", WRITERS),
        (MADE, {"strength": float("inf")}, "finite number", ["gguf", "repeng"]),
        (MADE, {"strength": 0.0}, "must not be 0", ["gguf", "repeng"]),
        (MADE, {"strength": "auto"}, "hold no calibration", ["gguf", "repeng"]),
        (MADE, {"strength": 1e38}, "beyond the range of float32", ["gguf", "repeng"]),
        (MADE, {"strength": 1e-60}, "beyond the range of float32", ["gguf", "repeng"]),
        (MADE, {"program": "ollama"}, "program must be one of", ["gguf"]),
    ],
)
def test_bad_arguments_write_nothing(wrong, options, message, writers, tmp_path):
    for name in writers:
        with pytest.raises(ValueError, match=message):
            WRITERS[name](wrong, tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export, read, ending", [(export_gguf, import_gguf, ".gguf"),
                                                  (export_npz, import_npz, ".npz")])  # fmt: skip
def test_paths_that_are_wrong(export, read, ending, tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file"):
        export(MADE, tmp_path)
    with pytest.raises(ValueError, match=f"must end in {ending}"):
        export(MADE, tmp_path / "x.bin")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        export(MADE, tmp_path / "file" / f"x{ending}")
    with pytest.raises(ValueError, match="is no file"):
        read(tmp_path / "nobody")
    path = export(MADE, tmp_path / "deep" / f"x{ending}")
    before = path.read_bytes()
    export(MADE, path)  # replaced
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
