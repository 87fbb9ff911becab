"""Files of others that declare more than they hold: refused at once, and nothing is filled."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

import expertsteer as es
from expertsteer.export.checkpoint import export_checkpoint
from expertsteer.export.gguf import import_gguf
from expertsteer.export.npz import import_npz
from expertsteer.export.tensor_files import read_header
from helpers.families import build
from helpers.mutations import bounded


def test_a_gguf_that_declares_more_than_it_holds_is_refused_at_once(tmp_path):
    pytest.importorskip("gguf")
    path, head = tmp_path / "v.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    name = struct.pack("<Q", 1) + b"a"
    huge = 1 << 40
    contents = {
        "array": head + name + struct.pack("<IIQ", 9, 4, huge),
        "array of texts": head + name + struct.pack("<IIQ", 9, 8, huge),
        "arrays in arrays": head + name + struct.pack("<IIQ", 9, 9, huge),
        "text": head + name + struct.pack("<IQ", 8, huge),
        "fields": b"GGUF" + struct.pack("<IQQ", 3, 0, huge),
        "tensors": b"GGUF" + struct.pack("<IQQ", 3, huge, 0),
        "deep": head + name + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
    }
    for what, data in contents.items():
        path.write_bytes(data)
        with bounded(5), pytest.raises(es.ArtifactError, match="v.gguf: .*GGUF file"):
            import_gguf(path)
            pytest.fail(what)


def test_an_archive_that_unpacks_to_more_than_it_can_mean_is_refused_unread(tmp_path):
    path = tmp_path / "v.npz"
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 75 << 20)}
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("vectors.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with bounded(10, 100), pytest.raises(es.ArtifactError, match="unpacks to 314,.*fill the memor"):
        import_npz(path)


def test_an_array_that_asks_for_more_than_its_member_holds_is_refused(tmp_path):
    path, made = tmp_path / "v.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(
        made, {"descr": "<f8", "fortran_order": False, "shape": (1, 1 << 40)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vectors.npy", made.getvalue() + bytes(80))
        archive.writestr("layers.npy", b"")
    with (
        bounded(10, 100),
        pytest.raises(es.ArtifactError, match="v.npz: .*vectors.npy declares"),
    ):
        import_npz(path)


def test_an_archive_with_one_layer_twice_is_refused(tmp_path):
    np.savez(tmp_path / "v.npz", layers=[1, 1], vectors=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"v.npz: layers must be different, came \[1, 1\]"):
        import_npz(tmp_path / "v.npz")


def safetensors_with(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


@pytest.mark.parametrize(
    "ranges", [[(0, 8), (0, 8)], [(0, 8), (4, 12)], [(-8, 0), (0, 8)], [(0, 8), (16, 24)],
               [(0, 8), (8, 32)], [(8, 0), (8, 16)]], ids=str,
)  # fmt: skip
def test_ranges_that_overlap_or_leave_holes_are_not_made_good(ranges, tmp_path):
    path = tmp_path / "model.safetensors"
    header = {
        f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": list(r)}
        for i, r in enumerate(ranges)
    }
    safetensors_with(path, header, 24)
    with pytest.raises(es.ArtifactError, match="model.safetensors: .*safetensors file"):
        read_header(path)
    build("llama").save_pretrained(tmp_path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    first, second = (n for n in list(entries)[1:3])
    entries[first]["data_offsets"] = entries[second]["data_offsets"]
    safetensors_with(path, entries, len(data) - 8 - length)
    with pytest.raises(ValueError, match="model.safetensors"):
        export_checkpoint(tmp_path, es.SteeringVectors({1: torch.ones(32)}), tmp_path / "out")
