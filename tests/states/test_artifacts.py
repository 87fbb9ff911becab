import json
import os

import pytest
import torch

from expertsteer import ArtifactError, HiddenStates, LayerPair, LayerPairing, SteeringVectors
from expertsteer.states.same_examples import require_same_examples
from expertsteer.support.artifact_files import read_artifact, write_artifact


def vectors(seed=0, layers=(1, 3), width=6, **metadata):
    generator = torch.Generator().manual_seed(seed)
    drawn = {i: torch.randn(width, generator=generator) for i in layers}
    return SteeringVectors(drawn, {i: 1.0 + i for i in layers}, metadata)


def test_hidden_states_survive_a_round_trip(tmp_path, make_states):
    states = make_states()
    states.save_pretrained(tmp_path)
    back = HiddenStates.from_pretrained(tmp_path)
    assert torch.equal(back.states, states.states) and torch.equal(back.keys, states.keys)
    assert (back.layers, back.position, back.model) == (states.layers, "last", states.model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_states_are_refused_with_their_place(bad):
    states = torch.zeros(2, 4, 3)
    states[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"states must be finite.*1 of 24.*\(1, 2, 0\)"):
        HiddenStates(states, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("states", "labels", "layers", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4), (), "layers, examples, width"),
        (torch.zeros(2, 4, 3, dtype=torch.int64), torch.zeros(4), (), "floating-point"),
        (torch.zeros(2, 4, 3), torch.zeros(5), (), "4 zeros and ones"),
        (torch.zeros(2, 4, 3), torch.full((4,), 2), (), "4 zeros and ones"),
        (torch.zeros(2, 4, 3), torch.zeros(4), (3, 1), "increasing"),
    ],
)
def test_malformed_states_name_the_argument(states, labels, layers, message):
    with pytest.raises(ValueError, match=message):
        HiddenStates(states, labels, layers)


def test_a_layer_that_was_not_captured_is_named(make_states):
    with pytest.raises(ValueError, match="layer 7 was not captured; captured layers"):
        make_states().layer(7)


def test_other_examples_or_another_order_are_noticed(make_states):
    expert, target = make_states(seed=1), make_states(seed=2)
    require_same_examples(expert, target)
    with pytest.raises(ValueError, match="80 examples and target 79"):
        require_same_examples(expert, target.take(range(79)))
    with pytest.raises(ValueError, match="differ at example 0 .*another order"):
        require_same_examples(expert, target.take(list(reversed(range(80)))))


def test_pairing_refuses_a_target_layer_steered_twice():
    with pytest.raises(ValueError, match="steered once"):
        LayerPairing((LayerPair(0, 1, 0.1), LayerPair(2, 1, 0.2)))


def test_vector_arithmetic_is_linear_in_displacements():
    a, b = vectors(0), vectors(1, layers=(3, 4))
    mixed = 0.5 * a + 0.25 * b - a
    for layer in (1, 3, 4):
        expected = sum(
            w * v.displacement(layer) for w, v in ((-0.5, a), (0.25, b)) if layer in v.layers
        )
        torch.testing.assert_close(mixed.displacement(layer), expected)
    torch.testing.assert_close((-a).displacement(3), -a.displacement(3))
    with pytest.raises(ValueError, match="width 6 and 5"):
        a + vectors(width=5)


def test_arithmetic_keeps_the_provenance_of_both():
    total = vectors(target={"hidden_size": 6}, method="rfm") + vectors(
        target={"hidden_size": 6}, method="pca"
    )
    assert total.metadata["target"] == {"hidden_size": 6}
    assert "method" not in total.metadata
    assert [part["method"] for part in total.metadata["sum_of"]] == ["rfm", "pca"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "at least one"),
        (({-1: torch.zeros(3)},), "count from 0"),
        (({0: torch.zeros(3), 1: torch.zeros(4)},), "one width"),
        (({0: torch.tensor([1.0, float("nan")])},), r"vectors\[0\] must be finite"),
        (({0: torch.zeros(2, 2)},), r"vectors\[0\] must be a floating-point tensor"),
        (({0: torch.zeros(3)}, {1: 1.0}), "no vector"),
        (({0: torch.zeros(3)}, {0: 0.0}), "positive"),
    ],
)
def test_malformed_vectors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        SteeringVectors(*arguments)


def test_vectors_survive_a_round_trip(tmp_path):
    saved = vectors(method="rfm")
    saved.save_pretrained(tmp_path)
    back = SteeringVectors.from_pretrained(tmp_path)
    assert back.scales == saved.scales and back.metadata["method"] == "rfm"
    assert all(torch.equal(back.vectors[i], saved.vectors[i]) for i in saved.layers)
    assert set(back.metadata["versions"]) == {"expertsteer", "torch", "transformers"}


def test_a_truncated_file_is_refused(tmp_path):
    vectors().save_pretrained(tmp_path)
    path = tmp_path / "steering_vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="truncated"):
        SteeringVectors.from_pretrained(tmp_path)


def test_foreign_and_newer_files_are_refused(tmp_path, make_states):
    make_states().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="holds no steering_vectors"):
        SteeringVectors.from_pretrained(tmp_path)
    vectors().save_pretrained(tmp_path)
    header = tmp_path / "steering_vectors.json"
    document = json.loads(header.read_text())
    header.write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(ArtifactError, match="format_version 99"):
        SteeringVectors.from_pretrained(tmp_path)
    header.write_text(json.dumps({"format": "somebody.else"}))
    with pytest.raises(ArtifactError, match="somebody.else"):
        SteeringVectors.from_pretrained(tmp_path)
    header.write_text("{")
    with pytest.raises(ArtifactError, match="damaged or foreign json file"):
        SteeringVectors.from_pretrained(tmp_path)


def test_a_failed_write_leaves_the_old_artefact_and_no_litter(tmp_path):
    write_artifact(tmp_path, "thing", {"x": torch.ones(2)}, {"note": "old"})
    with pytest.raises(ArtifactError, match="json values"):
        write_artifact(tmp_path, "thing", {"x": torch.ones(2)}, {"note": object()})
    assert read_artifact(tmp_path, "thing")[1]["note"] == "old"
    assert sorted(os.listdir(tmp_path)) == ["thing.json", "thing.safetensors"]


def test_a_save_cut_short_between_its_two_files_leaves_the_new_artefact(tmp_path):
    write_artifact(tmp_path, "thing", {"x": torch.zeros(2)}, {"note": "old"})
    old_header = (tmp_path / "thing.json").read_text()
    write_artifact(tmp_path, "thing", {"x": torch.ones(2)}, {"note": "new"})
    (tmp_path / "thing.json").write_text(old_header)
    tensors, header = read_artifact(tmp_path, "thing")
    assert header["note"] == "new" and torch.equal(tensors["x"], torch.ones(2))


DAMAGE = [
    ({"scales": None}, "field 'scales' must be an object of a finite number by name, came None"),
    ({"scales": {}}, r"scales of \[\], expected one each for the layers \[1, 3\]"),
    ({"scales": {"1": 1.0, "03": 1.0}}, "expected one each for the layers"),
    ({"metadata": ["a", "list"]}, "field 'metadata' must be an object, came .'a', 'list'."),
    ({"metadata": {"target": ["llama"]}}, "metadata: field 'target' must be an object or null"),
    ({"metadata": {"expert": {"num_layers": "3"}}}, "'num_layers' must be a whole number or null"),
    ({"width": 99}, "the file says width 99"),
    ({"width": True}, "field 'width' must be a whole number, came True"),
    ({"layers": [7]}, r"expected one each for the layers \[7\]"),
    ({"layers": [1, 3, 3]}, "the file says width 6, layers"),
]


@pytest.mark.parametrize("damage, message", DAMAGE, ids=lambda d: str(d)[:40])
def test_contents_of_a_wrong_kind_name_file_and_field(tmp_path, damage, message):
    made = vectors()
    tensors = {f"layers.{i}": v for i, v in made.vectors.items()}
    header = {"width": 6, "layers": [1, 3], "scales": {"1": 1.0, "3": 1.0}, "metadata": {}}
    write_artifact(tmp_path, "steering_vectors", tensors, header)
    SteeringVectors.from_pretrained(tmp_path)
    write_artifact(tmp_path, "steering_vectors", tensors, header | damage)
    with pytest.raises(ArtifactError, match=message) as refused:
        SteeringVectors.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    "change", [{"scales": {}}, {"width": 99}, {"metadata": {}}, {"note": "added by hand"}], ids=str
)
def test_a_json_that_was_edited_disagrees_with_the_copy_inside(tmp_path, change):
    saved = vectors(method="rfm")
    saved.save_pretrained(tmp_path)
    path = tmp_path / "steering_vectors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=f"disagree on {next(iter(change))}"):
        SteeringVectors.from_pretrained(tmp_path)
    path.unlink()  # the way out that the error names
    assert SteeringVectors.from_pretrained(tmp_path).fingerprint == saved.fingerprint


def test_one_tensor_at_two_layers_can_be_saved(tmp_path):
    shared = torch.ones(4)
    SteeringVectors({1: shared, 2: shared}).save_pretrained(tmp_path)
    assert SteeringVectors.from_pretrained(tmp_path).layers == (1, 2)


def test_a_folder_that_cannot_be_written_and_nan_are_clear_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        vectors().save_pretrained(tmp_path / "file")
    with pytest.raises(ArtifactError, match="json values"):
        vectors(figure=float("nan")).save_pretrained(tmp_path / "nan")


def test_take_understands_indices_and_masks(make_states):
    states = make_states()
    mask = states.labels.bool()
    by_mask, by_index = states.take(mask), states.take(mask.nonzero().flatten())
    assert torch.equal(by_mask.states, by_index.states) and bool(by_mask.labels.all())
    for rows, message in (
        ([1.7], "indices or a mask"),
        ([80], "80 is out of range"),
        (mask[:5], "mask of 80 bools"),
    ):
        with pytest.raises(ValueError, match=message):
            states.take(rows)


def test_half_precision_vectors_do_not_overflow():
    big = SteeringVectors({0: torch.full((3,), 100.0, dtype=torch.float16)}, {0: 1000.0})
    assert big.displacement(0).tolist() == [1e5] * 3


def test_vectors_of_different_models_do_not_add_up():
    first, second = (vectors(target={"num_layers": n}) for n in (4, 9))
    with pytest.raises(ValueError, match="different models: num_layers 4 and 9"):
        first + second
    total = sum([first, first]) / 2
    torch.testing.assert_close(total.displacement(1), first.displacement(1))


def test_neither_folder_nor_repository_is_one_clear_error():
    with pytest.raises(ValueError, match="neither a folder here nor a Hub repository"):
        SteeringVectors.from_pretrained("nobody/nothing-here")
