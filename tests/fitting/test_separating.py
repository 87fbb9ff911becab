"""How well each layer tells the classes apart, on rows that a fit did not see."""

import pytest
import torch

import expertsteer as es
from expertsteer.fitting.separating import separating


@pytest.fixture(scope="module")
def planted():
    """Noise, a step of four deviations, a step of one, and a layer where all states coincide."""
    labels = torch.arange(80) % 2
    states = torch.randn(4, 80, 12, generator=torch.Generator().manual_seed(1))
    states[1, :, 3] += 6.0 * labels
    states[2, :, 5] += 1.5 * labels
    states[3] = 1.0
    return es.HiddenStates(states, labels, layers=(2, 4, 6, 9))


@pytest.mark.parametrize("method", ["rfm", "mean_difference"])
def test_a_planted_step_is_found_and_noise_is_not(planted, method):
    noise, large, small, constant = separating(planted, planted.layers, method)
    assert 0.3 < noise.auc < 0.7 and large.auc > 0.98 and 0.6 < small.auc < large.auc
    assert large.stability > small.stability > noise.stability
    assert constant.auc is None and constant.rank < noise.rank < small.rank < large.rank


def test_each_layer_is_judged_by_itself_and_the_seed_repeats_it(planted):
    together = separating(planted, planted.layers, "rfm", es.RFM(iters=5), seed=3)
    alone = [separating(planted, [i], "rfm", es.RFM(iters=5), seed=3)[0] for i in planted.layers]
    assert together == alone


def test_halves_that_cannot_be_made_tell_nothing(planted):
    (found,) = separating(planted.take(range(4)), [4], "rfm")
    assert found.auc is None and found.rank == (0.0, 0.0)
