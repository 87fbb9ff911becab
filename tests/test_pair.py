import math

import pytest
import torch

import expertsteer as es
from expertsteer.pair import gaussian_bias


def gaussian_pair(n, r, nats, d_x=None, d_y=None, seed=0):
    """Rows of two jointly Gaussian layers with exactly ``nats`` of information.

    r coordinates are correlated one by one; isometries then hide them in d dimensions, beside
    independent nuisance of lower variance, which changes no information.
    """
    generator = torch.Generator().manual_seed(seed)
    correlation = math.sqrt(1 - math.exp(-2 * nats / r))

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = noise(n, r)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise(n, r)
    hidden = []
    for core, d in ((x, d_x or r), (y, d_y or r)):
        padded = torch.cat([core, 0.1 * noise(n, d - r)], dim=1)
        hidden.append(padded @ torch.linalg.qr(noise(d, d)).Q)
    return hidden[0][None], hidden[1][None]


@pytest.mark.parametrize("nats", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("r", "n"), [(1, 250), (8, 1000), (32, 2000)])
def test_the_estimate_is_unbiased_for_gaussian_layers(nats, r, n):
    draws = [
        es.mutual_information(*gaussian_pair(n, r, nats, seed=s), components=r) for s in range(12)
    ]
    draws = torch.stack(draws).flatten()
    allowed = max(0.05, 0.03 * nats) + 2 * float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean()) - nats) < allowed


def test_hundreds_of_nuisance_dimensions_change_nothing():
    draws = [
        es.mutual_information(*gaussian_pair(800, 4, 2.0, d_x=300, d_y=500, seed=s), components=4)
        for s in range(6)
    ]
    assert abs(float(torch.stack(draws).mean()) - 2.0) < 0.12


def test_independent_layers_lie_within_the_null():
    x, _ = gaussian_pair(600, 6, 1.0, d_x=40, seed=1)
    _, y = gaussian_pair(600, 6, 1.0, d_y=30, seed=2)
    measured = es.mutual_information(x, y, components=6, null=40)
    assert float(measured.z_score.abs()) < 3.5 and abs(float(measured.nats)) < 0.1
    assert abs(float(measured.floor)) < 0.1


def test_information_stands_above_its_floor():
    measured = es.mutual_information(*gaussian_pair(600, 6, 1.0), components=6, null=20)
    assert float(measured.nats) > float(measured.floor) and float(measured.z_score) > 5
    assert measured.permutations == 20


def test_invertible_maps_and_exchange_leave_it_unchanged():
    x, y = gaussian_pair(500, 5, 1.5, seed=3)
    mapped = x @ torch.randn(5, 5).double() + 7.0
    base = es.mutual_information(x, y, components=5)
    torch.testing.assert_close(es.mutual_information(mapped, y, components=5), base)
    torch.testing.assert_close(es.mutual_information(y, x, components=5), base)


def test_all_pairs_at_once_equal_pairs_one_by_one(make_states):
    x, y = make_states(layers=3, seed=1).states, make_states(layers=2, width=9, seed=2).states
    whole = es.mutual_information(x, y, components=3)
    assert whole.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            alone = es.mutual_information(x[i : i + 1], y[j : j + 1], components=3)
            torch.testing.assert_close(alone[0, 0], whole[i, j])


def test_a_noisy_chain_of_layers_is_ordered():
    state = torch.randn(1500, 6).double()
    chain = [state]
    for _ in range(3):
        chain.append(chain[-1] + 0.8 * torch.randn(1500, 6).double())
    nats = es.mutual_information(chain[0][None], torch.stack(chain[1:]), components=6)[0]
    assert bool((nats[:-1] > nats[1:]).all())


@pytest.mark.parametrize("n", [8, 12, 40, 200])
def test_layers_that_determine_each_other_stay_finite_and_on_top(make_states, n):
    x = make_states(layers=2, seed=1).states[:, :1].expand(2, n, 12) * 0
    x = x + torch.randn(2, n, 12).double()
    nats = es.mutual_information(x, x)
    assert bool(torch.isfinite(nats).all())
    assert float(nats.diagonal().min()) > 10 > float(nats[0, 1])


def test_the_bias_is_the_wishart_mean():
    n, r, runs = 40, 3, 4000
    x, y = torch.randn(runs, n, r).double(), torch.randn(runs, n, r).double()
    both = torch.cat([x, y], dim=2)

    def logdet(z):
        z = z - z.mean(dim=1, keepdim=True)
        return torch.linalg.slogdet(z.mT @ z).logabsdet

    plug_in = 0.5 * (logdet(x) + logdet(y) - logdet(both))
    error = 3 * float(plug_in.std()) / math.sqrt(runs)
    assert abs(float(plug_in.mean()) - gaussian_bias(n, r, r)) < error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :5], y), "over the same N examples"),
        (lambda x, y: (x[:, :6], y[:, :6]), "at least 8 examples, came 6"),
        (lambda x, y: (x * float("nan"), y), "x must be finite"),
        (lambda x, y: (x * 0, y), "constant or"),
    ],
)
def test_bad_states_are_refused(make_states, change, message):
    with pytest.raises(ValueError, match=message):
        es.mutual_information(*change(make_states(seed=1).states, make_states(seed=2).states))


def test_bad_options_are_refused(make_states):
    x = make_states().states
    with pytest.raises(ValueError, match="estimator must be one of"):
        es.mutual_information(x, x, "guess")
    with pytest.raises(ValueError, match="between 1 and the width 12, came 13"):
        es.mutual_information(x, x, components=13)
    with pytest.raises(ValueError, match="8 components need at least 36 examples, came 30"):
        es.mutual_information(x[:, :30], x[:, :30], components=8)
    with pytest.raises(ValueError, match="at least 2 permutations"):
        es.mutual_information(x, x, null=1)


MATRIX = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.7, 0.3]])


def test_rules_choose_what_they_say():
    lowest = es.pair_layers(MATRIX, k=2)
    assert [p[:2] for p in lowest] == [(0, 1), (1, 0)]
    assert [round(p.nats, 3) for p in lowest] == [0.1, 0.2]
    highest = es.pair_layers(MATRIX, k=2, rule="highest")
    assert [p[:2] for p in highest] == [(0, 2), (1, 1)]


def test_a_target_layer_is_paired_once_and_labels_are_used():
    pairing = es.pair_layers(MATRIX, k=3, expert_layers=(4, 8), target_layers=(1, 2, 5))
    assert sorted(pairing.target_layers) == [1, 2, 5]
    assert pairing.pairs[0][:2] == (4, 2)


def test_ties_go_to_the_lower_layers():
    pairing = es.pair_layers(torch.zeros(3, 3), k=3)
    assert [p[:2] for p in pairing] == [(0, 0), (0, 1), (0, 2)]


def test_random_pairs_are_seeded_and_differ_between_seeds():
    matrix = torch.rand(8, 8)
    draws = [es.pair_layers(matrix, k=4, rule="random", seed=s) for s in (0, 0, 1)]
    assert draws[0].pairs == draws[1].pairs != draws[2].pairs
    assert len(set(draws[0].target_layers)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 4}, "number of target layers, 3; came 4"),
        ({"k": 0}, "came 0"),
        ({"k": 1, "rule": "best"}, "rule must be one of"),
        ({"k": 2.5}, "came 2.5"),
        ({"k": 1, "expert_layers": (1,)}, "expert_layers must name 2 different layers"),
        ({"k": 1, "target_layers": (1, 1, 2)}, "target_layers must name 3 different layers"),
    ],
)
def test_bad_pairing_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        es.pair_layers(MATRIX, **options)
