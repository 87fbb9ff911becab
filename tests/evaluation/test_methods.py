"""What is compared: methods fitted once, those that cannot be, and directions drawn at random."""

import pytest
import torch

import expertsteer as es
from expertsteer.evaluation.methods import (
    METHODS,
    OWN,
    PAPER,
    Fitting,
    fit_methods,
    random_directions,
    random_like,
)

pytestmark = pytest.mark.transformers


def test_methods_that_cannot_be_fitted_say_why(world):
    _, _, (own, _, narrow) = world
    fitting = Fitting(narrow, own, pairs=2)
    fitted, missing = fit_methods(fitting)
    assert set(fitted) | set(missing) == set(METHODS)
    assert "equal widths, came 16" in missing["expert: identity"]
    assert "effect" in missing["expert: Procrustes, validated pairs"]
    with pytest.raises(ValueError, match="methods must be some of"):
        fit_methods(fitting, ["magic"])
    some, _ = fit_methods(fitting, [PAPER])
    assert torch.equal(some[PAPER].vectors[0], fitted[PAPER].vectors[0])


def test_validated_pairs_are_those_with_the_largest_effect(world):
    _, _, (own, expert, _) = world
    seen = {}

    def effect(vectors):
        (layer,) = vectors.layers
        partner = vectors.metadata["pairing"]["pairs"][0]["expert_layer"]
        seen[partner, layer] = float(partner == 1 - layer)
        return seen[partner, layer]

    name = "expert: Procrustes, validated pairs"
    fitted, _ = fit_methods(Fitting(expert, own, pairs=2, effect=effect), [name])
    pairs = fitted[name].metadata["pairing"]["pairs"]
    assert {(p["expert_layer"], p["target_layer"]) for p in pairs} == {(1, 0), (0, 1)}
    assert len(seen) == 4


def test_random_directions_are_seeded_unit_and_scaled_like_fitted_ones(world):
    _, _, (own, _, _) = world
    first, again, other = (random_directions(own, seed) for seed in (3, 3, 4))
    assert torch.equal(first.vectors[0], again.vectors[0])
    assert not torch.equal(first.vectors[0], other.vectors[0])
    assert float(first.vectors[1].norm()) == pytest.approx(1.0, abs=1e-6)
    fitted, _ = fit_methods(Fitting(own, own, pairs=2), list(OWN)[:1])
    assert next(iter(fitted.values())).scales == first.scales


def test_random_directions_like_given_vectors_have_their_layers_and_lengths():
    given = es.SteeringVectors({0: 2 * torch.ones(9), 3: torch.ones(9)}, {0: 3.0, 3: 4.0})
    drawn, again = random_like(given, 5), random_like(given, 5)
    assert drawn.layers == given.layers and drawn.scales == given.scales
    assert torch.equal(drawn.vectors[3], again.vectors[3])
    for layer in given.layers:
        lengths = [float(v.displacement(layer).norm()) for v in (drawn, given)]
        assert lengths[0] == pytest.approx(lengths[1])
