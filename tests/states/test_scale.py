"""The unit of strength: what it must not depend on, and what it must follow."""

import pytest
import torch

import expertsteer as es
from expertsteer.states.scale import median_deviation
from helpers.artefacts import states

D = torch.float64


def draws(rows=501, width=24, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_of_gaussian_states_it_is_a_known_share_of_their_distance_from_the_mean():
    x = draws(4001)
    deviations = torch.linspace(0.1, 5, 24, dtype=D)
    normal = 0.6745  # the median of |z|
    assert median_deviation(x * deviations) == pytest.approx(
        normal * float(deviations.norm()), rel=0.05
    )


def test_an_enormous_dimension_that_does_not_move_changes_nothing():
    x = draws()
    shifted = x.clone()
    shifted[:, 5] += 1e6
    assert median_deviation(shifted) == pytest.approx(median_deviation(x), rel=1e-8)
    assert float(shifted.norm(dim=1).median()) > 1e5 * median_deviation(shifted)


def test_a_few_enormous_states_change_little():
    x = draws()
    spoilt = x.clone()
    spoilt[:25] *= 1e6
    assert median_deviation(spoilt) == pytest.approx(median_deviation(x), rel=0.1)


def test_it_scales_with_the_states_and_ignores_their_place_and_order():
    x = draws()
    found = median_deviation(x)
    assert median_deviation(3.5 * x + 7) == pytest.approx(3.5 * found)
    assert median_deviation(x.flip(0)) == found
    assert median_deviation(x.bfloat16()) == pytest.approx(found, rel=0.01)


def test_many_rows_are_sampled_over_their_whole_length():
    x = draws(20000, 4)
    x[10000:] *= 3
    assert median_deviation(x) == pytest.approx(median_deviation(x[::2]), rel=0.1)


def test_where_most_states_coincide_the_others_tell():
    x = torch.zeros(100, 3, dtype=D)
    x[:10, 1] = 2.0
    assert median_deviation(x) == pytest.approx(2 * (0.1 * 0.9) ** 0.5)


def test_equal_states_are_told_and_give_their_length():
    x = torch.ones(10, 4, dtype=D)
    with pytest.warns(UserWarning, match="layer 3 are the same for every example"):
        assert median_deviation(x, "the states of layer 3") == 2.0


def test_fitted_vectors_have_it_for_scales_and_say_so(tmp_path):
    target = states()
    pairing = es.LayerPairing.same(target.layers[:2])
    vectors = es.fit_vectors(target, target, es.align(target, target), pairing, validation=0)
    assert vectors.metadata["unit"] == "median deviation"
    for layer in vectors.layers:
        assert vectors.scales[layer] == pytest.approx(median_deviation(target.layer(layer)))
