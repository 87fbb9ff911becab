import math
import re
import warnings

import pytest
import torch

import expertsteer as es
from expertsteer import ops
from expertsteer.pairing.gaussian import gaussian_bias
from expertsteer.pairing.projection import Wanted, centre, components
from helpers.planted import gaussian_pair, hidden_in_thousands


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
    with warnings.catch_warnings():  # whether it says so hangs on the draw
        warnings.simplefilter("ignore", UserWarning)
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
    torch.testing.assert_close(
        es.mutual_information(mapped, y, components=5), base, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(es.mutual_information(y, x, components=5), base, rtol=0, atol=1e-5)


def test_all_pairs_at_once_equal_pairs_one_by_one(make_states):
    x, y = make_states(layers=3, seed=1).states, make_states(layers=2, width=9, seed=2).states
    whole = es.mutual_information(x, y, components=3)
    assert whole.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            alone = es.mutual_information(x[i : i + 1], y[j : j + 1], components=3)
            torch.testing.assert_close(alone[0, 0], whole[i, j], rtol=0, atol=1e-5)


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
        (lambda x, y: (x * float("nan"), y), r"x\[0\] must be finite"),
        (lambda x, y: (x * 0, y), "is constant: the states of all examples coincide"),
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
    with pytest.raises(ValueError, match="12 components need at least 28 examples, came 26"):
        es.mutual_information(x[:, :26], x[:, :26], components=12)
    with pytest.raises(ValueError, match="at least 20 draws, came 3"):
        es.mutual_information(x, x, bootstrap=3)
    with pytest.raises(ValueError, match="at least 2 permutations"):
        es.mutual_information(x, x, null=1)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "draws"), [(250, 32), (1000, 8), (4000, 2)])
@pytest.mark.parametrize("r", [1, 8, 32])
@pytest.mark.parametrize("nats", [0.1, 1.0, 10.0])
def test_the_truth_is_found_in_four_thousand_dimensions(n, draws, r, nats):
    x, y = hidden_in_thousands(n, r, nats, draws, seed=n + r)
    found = es.mutual_information(x, y, components=r).diagonal()
    error = 2 * float(found.std()) / math.sqrt(draws) if draws > 1 else 0.0
    assert abs(float(found.mean()) - nats) < max(0.05, 0.03 * nats) + error


@pytest.mark.parametrize(("n", "r", "nats"), [(300, 2, 0.1), (300, 2, 3.0), (250, 8, 1.0)])
def test_intervals_cover_the_truth(n, r, nats):
    pairs = [gaussian_pair(n, r, nats, seed=s) for s in range(60)]
    x, y = (torch.cat(side) for side in zip(*pairs))
    measured = es.mutual_information(x, y, components=r, bootstrap=100)
    low, high = measured.low.diagonal(), measured.high.diagonal()
    covered = int(((low <= nats) & (nats <= high)).sum())
    assert covered >= 51  # of 60; fewer than once in a thousand runs at 95 %
    assert bool((low < measured.nats.diagonal()).all() & (measured.nats.diagonal() < high).all())
    # Not by being wide: as wide as the estimates scatter.
    width, scatter = float((high - low).mean()), float(measured.nats.diagonal().std())
    assert 2.5 * scatter < width < 6.5 * scatter


@pytest.mark.parametrize(("n", "r"), [(40, 16), (20, 7), (30, 13)])
def test_too_few_rows_are_shrunk_and_reported(n, r):
    x, y = gaussian_pair(n, r, 5.0)
    _, other = gaussian_pair(n, r, 5.0, seed=1)
    said = f"shrunk by .*{4 * r + 4} examples need no shrinkage"
    with pytest.warns(UserWarning, match=said), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*than chance"
        )  # the independent pair is under its floor
        measured = es.mutual_information(x, torch.cat([y, other]), components=r, null=2)
    assert bool(((measured.shrinkage > 0) & (measured.shrinkage <= 1)).all())
    assert 0 <= float(measured.nats[0, 1]) < 1.5  # independent, and far from the plug-in's infinity
    assert float(measured.nats.max()) < 5.0
    enough = es.mutual_information(*gaussian_pair(4 * r + 4, r, 90.0), components=r, null=2)
    assert float(enough.shrinkage) == 0
    with pytest.raises(ValueError, match=f"an interval with {r} components needs at least"):
        es.mutual_information(x, y, components=r, bootstrap=20)


@pytest.mark.parametrize(
    ("n", "r_x", "r_y", "layers"), [(9, 1, 1, (1, 1)), (63, 3, 7, (2, 5)), (257, 17, 5, (3, 1))]
)
def test_every_backend_is_the_singular_value_definition(n, r_x, r_y, layers):
    x = torch.randn(layers[0], n, r_x).double()
    y = torch.randn(layers[1], n, r_y).double()
    r = min(r_x, r_y)
    y[:, :, :r] += x[:1, :, :r]  # ordinary information
    y[-1, :, 0] = x[0, :, 0] + 1e-3 * torch.randn(n)  # too much for single precision
    y[0, :, -1] = x[-1, :, -1]  # and for any
    expected = ops.gaussian_information(x, y, backend="reference")
    found = ops.gaussian_information(x, y)
    finite = expected < 15  # beyond, the last bits of double precision decide
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[~finite], expected[~finite], rtol=0, atol=1.5)
    assert bool((~finite).any())


def test_a_low_estimate_says_how_many_examples_would_do():
    pairs = [gaussian_pair(60, 4, 0.02, seed=s) for s in range(6)]
    x, y = (torch.cat(side) for side in zip(*pairs))
    with pytest.warns(UserWarning, match="no more information than chance") as caught:
        es.mutual_information(x, y, components=4, null=40)
    message = str(caught[0].message)
    low, of, needed, came = map(int, re.findall(r"\d+(?! %)", message.replace("95 %", "")))
    assert 20 < low <= of == 36 and needed > came == 60


class Rows:
    """A list that counts what is read, and gives nothing but one layer at a time."""

    def __init__(self, states):
        self.states, self.read = states, []

    def __len__(self):
        return len(self.states)

    def __getitem__(self, index):
        self.read.append(index)
        return self.states[index].clone()


def test_layers_may_come_one_by_one(make_states):
    x, y = make_states(layers=3, seed=1), make_states(layers=2, width=9, seed=2)
    expected = es.mutual_information(x.states, y.states, components=3)
    source = Rows(x.states)
    assert torch.equal(es.mutual_information(source, list(y.states), components=3), expected)
    assert source.read == [0, 0, 1, 2]  # the shape first
    assert torch.equal(es.mutual_information(x, y, components=3), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([torch.randn(80, 4), torch.randn(79, 4)], r"x\[1\] must be .*\(80, 4\)"),
        ([torch.zeros(80, 4).long()], r"x\[0\] must be floating point"),
        ([], "x holds no layer"),
        (torch.zeros(80, 4), r"x must be \[layers, N, width\]"),
        (iter([1]), "give the states .* by index"),
        ([torch.full((80, 4), 0.1)], r"x\[0\] is constant"),
        ([torch.randn(80, 1).expand(80, 4)], r"varies in only 1 directions, fewer than the 3"),
        ([torch.full((80, 4), float("nan"))], r"x\[0\] must be finite.*320 of 320"),
    ],
)
def test_bad_layers_are_named(make_states, source, message):
    with pytest.raises(ValueError, match=message):
        es.mutual_information(source, make_states().states, components=3)


@pytest.mark.parametrize(("rows", "width"), [(400, 600), (600, 300), (50, 600), (300, 40)])
@pytest.mark.parametrize("rank", [40, 200])
def test_components_are_orthonormal_and_hold_the_variance(rows, width, rank):
    scales = torch.arange(1, rank + 1).pow(-0.5)
    states = (torch.randn(rows, rank) * scales) @ torch.randn(rank, width) + 3
    centred, mean = centre(states)
    axes = components(centred, mean, Wanted(16, True), centred, "layer")
    torch.testing.assert_close(axes @ axes.mT, torch.eye(16), rtol=0, atol=1e-4)
    best = torch.linalg.svdvals(centred.double())[:16].square()
    held = (centred @ axes.mT).double().square().sum(dim=0)
    assert float(held.sum()) > 0.995 * float(best.sum())
    assert bool((held[:-1] > held[1:] * 0.98).all())  # the largest first


@pytest.mark.parametrize("decay", [0.97, 0.75])  # 0.75: the 32nd variance is 2e-8 of the first
@pytest.mark.parametrize(("rows", "width"), [(300, 700), (301, 300), (900, 1000)])
def test_components_of_steep_spectra_are_each_found(decay, rows, width):
    scales = decay ** torch.arange(250).double()
    left, right = (torch.linalg.qr(torch.randn(m, 250).double()).Q for m in (rows, width))
    rows = (left * scales @ right.mT).float()
    axes = components(rows, torch.zeros(width), Wanted(32, True), rows, "layer").double()
    torch.testing.assert_close(axes @ axes.mT, torch.eye(32).double(), rtol=0, atol=1e-5)
    kept = (axes @ right[:, :32]).square().sum(dim=0)  # of every true axis
    assert float(kept.min()) > 0.99


@pytest.mark.parametrize("estimator", ["gaussian", "ksg", "renyi2"])
def test_layers_of_any_size_have_the_same_information(estimator):
    x, y = gaussian_pair(200, 4, 1.0, d_x=20, d_y=20)
    x, y = x.float(), y.float()
    options = {} if estimator == "renyi2" else {"components": 4}
    expected = es.mutual_information(x, y, estimator=estimator, **options)
    for exponent in (-110, -66, 66, 110):  # powers of two, which round nothing
        found = es.mutual_information(x * 2.0**exponent, y, estimator=estimator, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_error_names_the_model_and_its_layer():
    good, bad = torch.randn(2, 60, 8), torch.randn(2, 60, 8)
    bad[1] = 0
    labels = torch.arange(60) % 2
    states = [
        es.HiddenStates(one, labels, layers=(3, 7), model={"name": name})
        for one, name in ((good, "the-target"), (bad, "the-expert"))
    ]
    with pytest.raises(ValueError, match=r"y\[1\] \(layer 7 of the-expert\) is constant"):
        es.mutual_information(*states, components=4)
    with pytest.raises(ValueError, match=r"x\[1\] is constant"):
        es.mutual_information(bad, good, components=4)
