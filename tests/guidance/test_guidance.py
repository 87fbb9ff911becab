"""The record of guidance: what it maps, what it refuses, and that a save is what was saved."""

import pytest
import torch

from expertsteer.alignment.left_out import left_out_ridge
from expertsteer.guidance.guidance import Guidance
from expertsteer.support.reading import ArtifactError
from expertsteer.support.tensors import normal_draws

EXPERT, TARGET = (3, 5), (1, 0)


def states(n=9, seed=0):
    return normal_draws(2, n, 4, seed=seed)  # layers 3 and 5 of an expert 4 wide


@pytest.fixture
def made():
    x = states(40, 7).transpose(0, 1).flatten(1)
    goals = [normal_draws(40, 6, seed=seed) for seed in (1, 2)]
    maps = dict(zip(TARGET, (one.map for one in left_out_ridge(x, goals))))
    return Guidance.of_maps(EXPERT, maps, strength=0.75, metadata={"expert": "a"}), maps


def test_every_target_layer_has_its_own_map_of_all_expert_layers(made):
    guidance, maps = made
    found = guidance(states())
    assert found.shape == (2, 9, 6) and guidance.width == 6
    for layer, one in zip(TARGET, found):
        torch.testing.assert_close(one, maps[layer](states().transpose(0, 1).flatten(1)))


def test_a_save_is_read_back_whole(made, tmp_path):
    guidance, _ = made
    guidance.save_pretrained(tmp_path)
    again = Guidance.from_pretrained(tmp_path)
    assert (again.expert_layers, again.target_layers, again.strength) == (EXPERT, TARGET, 0.75)
    assert dict(again.metadata) == {"expert": "a"}
    assert torch.equal(again(states()), guidance(states()))


def test_a_damaged_file_is_an_error_that_names_it(made, tmp_path):
    made[0].save_pretrained(tmp_path)
    file = tmp_path / "guidance.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="guidance"):
        Guidance.from_pretrained(tmp_path)


def test_it_cannot_be_changed(made):
    with pytest.raises(AttributeError):
        made[0].strength = 0.1
    with pytest.raises(TypeError):
        made[0].metadata["expert"] = "b"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"strength": 1.5}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"target_layers": (1,)}, "shapes"),
        ({"target_layers": (1, 1)}, "each layer once"),
        ({"expert_layers": ()}, "shapes"),
        ({"bias": torch.full((2, 6), torch.inf)}, "bias must be finite"),
        ({"centre": torch.zeros(5)}, "shapes"),
    ],
)
def test_what_does_not_fit_is_named(made, change, named):
    whole = {name: getattr(made[0], name) for name in Guidance.__dataclass_fields__}
    with pytest.raises(ValueError, match=named):
        Guidance(**whole | change)


def test_states_of_other_layers_are_refused(made):
    for wrong in (states()[:1], normal_draws(2, 9, 5, seed=0)):
        with pytest.raises(ValueError, match="states must be"):
            made[0](wrong)


def test_maps_of_different_states_are_refused(made):
    _, maps = made
    other = left_out_ridge(normal_draws(40, 8, seed=3), [normal_draws(40, 6, seed=1)])[0].map
    with pytest.raises(ValueError, match="the same states"):
        Guidance.of_maps(EXPERT, maps | {2: other})
