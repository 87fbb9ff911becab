"""The file for lm-eval's own steered model: what it holds, what it cannot, and foreign ones."""

import pytest
import torch

import expertsteer as es
from expertsteer.export import lm_eval
from expertsteer.support.reading import ArtifactError
from helpers.families import build
from helpers.steered_models import vectors

pytestmark = pytest.mark.transformers

MADE = vectors(layers=(0, 2))


def test_the_file_holds_what_strength_one_adds_and_the_strength(tmp_path, model):
    path = lm_eval.write(tmp_path / "v.pt", MADE, model, strength=-0.5)
    content = lm_eval.read(path)
    assert list(content) == ["layers.0", "layers.2"]
    for layer in MADE.layers:
        entry = content[f"layers.{layer}"]
        assert torch.equal(entry["steering_vector"], MADE.displacement(layer))
        assert entry["steering_coefficient"] == -0.5 and entry["action"] == "add"
        assert entry["bias"] is None and entry["head_index"] is None
    names = lm_eval.hookpoints(build("gpt2"), es.SteeringVectors({1: torch.ones(32)}))
    assert names == {1: "h.1"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"path": "v.csv"}, "path must end in .pt"),
        ({"positions": "generated"}, "positions='generated' is lost; evaluate it live"),
        ({"positions": [[1, 0]]}, "is lost"),
        ({"operation": "remove", "strength": 0.5}, "not the share strength=0.5"),
        ({"operation": "add_keep_norm"}, "no operation like 'add_keep_norm'"),
        ({"strength": float("nan")}, "strength must be a finite number"),
        ({"strength": "auto"}, "hold no calibration"),
        ({"vectors": es.SteeringVectors({9: torch.ones(32)})}, "layer 9 is out of range"),
        ({"vectors": es.SteeringVectors({1: torch.ones(7)})}, "width 7"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, model, change, named):
    options = {"path": "v.pt", "vectors": MADE} | change
    with pytest.raises(ValueError, match=named):
        lm_eval.write(tmp_path / options.pop("path"), options.pop("vectors"), model, **options)
    assert not list(tmp_path.iterdir())


def test_foreign_files_are_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    for name, content in (("bomb", {"layers.0": Bomb()}), ("list", [1]), ("odd", {"a": {"b": 1}})):
        torch.save(content, tmp_path / f"{name}.pt")
    (tmp_path / "torn.pt").write_bytes(b"\x00")
    for path in tmp_path.iterdir():
        with pytest.raises(ArtifactError, match=path.name):
            lm_eval.read(path)
