"""Nearest-neighbour information: the counts, the published definition, and known truths."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma

import expertsteer as es
from expertsteer import ops
from expertsteer.ops.information import calls, native, reference
from helpers.planted import correlation_of, gaussian_pair

BACKENDS = ["reference", "native"]


def points(layers, n, r, kind):
    """Codes on a grid: in general position, with duplicates, or full of ties."""
    codes = torch.randn(layers, n, r)
    if kind == "duplicates":
        codes[:, n // 2 :] = codes[:, : n - n // 2].clone()
    if kind == "ties":
        codes = codes.mul(2).round()
    return reference.on_a_grid(codes)


def counts_by_brute_force(x, y, k, variant):
    """Counts of one pair, point by point in double precision, as the paper words them."""
    x, y = x.double().numpy(), y.double().numpy()
    n_x, n_y = [], []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        d_x = np.abs(x - x[i]).max(axis=1)[others]
        d_y = np.abs(y - y[i]).max(axis=1)[others]
        joint = np.maximum(d_x, d_y)
        radius = np.sort(joint)[k - 1]
        if variant == 1:
            n_x.append((d_x < radius).sum())
            n_y.append((d_y < radius).sum())
        else:
            n_x.append((d_x <= d_x[joint <= radius].max()).sum())
            n_y.append((d_y <= d_y[joint <= radius].max()).sum())
    return torch.tensor(np.array([n_x, n_y]))


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("kind", ["general", "duplicates", "ties"])
@pytest.mark.parametrize(
    ("n", "k", "r_x", "r_y", "layers"),
    [(5, 4, 1, 2, (1, 1)), (17, 1, 2, 1, (2, 3)), (63, 3, 4, 3, (3, 2)), (64, 8, 1, 1, (1, 2))]
    + [(131, 5, 8, 2, (2, 1)), (130, 12, 2, 2, (1, 1))],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_those_of_double_precision(backend, n, k, r_x, r_y, layers, kind, variant):
    x, y = points(layers[0], n, r_x, kind), points(layers[1], n, r_y, kind)
    rows = range(2, n - 1)  # a tile in the middle
    measure = ops.choose("max_norm_distances", backend, x.device, x.dtype)
    distances = [measure(codes, rows) for codes in (x, y)]
    exact = reference.max_norm_distances(x.double(), rows)
    assert torch.equal(distances[0].double(), exact)
    counted = torch.stack(ops.ksg_counts(*distances, k, variant, backend=backend))
    assert counted.dtype == torch.int32 and counted.shape == (2, *layers, len(rows))
    for a in range(layers[0]):
        for b in range(layers[1]):
            expected = counts_by_brute_force(x[a], y[b], k, variant)[:, rows.start : rows.stop]
            assert torch.equal(counted[:, a, b].long(), expected.long())


def test_threads_change_no_count(monkeypatch):
    x, y = points(2, 300, 3, "general"), points(3, 300, 2, "general")
    distances = [reference.max_norm_distances(codes, range(300)) for codes in (x, y)]
    alone = ops.ksg_counts(*distances, 3, backend="native")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert all(map(torch.equal, alone, ops.ksg_counts(*distances, 3, backend="native")))


def published_definition(x, y, k):
    """Variant 1 as NPEET computes it: a k-d tree, open balls that hold their centre."""
    x, y = x.double().numpy(), y.double().numpy()
    joint = np.hstack([x, y])
    radius = cKDTree(joint).query(joint, k + 1, p=np.inf)[0][:, -1]
    inside = np.nextafter(radius, 0)
    total = 0.0
    for side in (x, y):
        counts = cKDTree(side).query_ball_point(side, inside, p=np.inf, return_length=True)
        total += digamma(counts).mean()
    return digamma(k) + digamma(len(x)) - total


@pytest.mark.parametrize(("n", "r", "k"), [(200, 1, 3), (500, 3, 5), (400, 8, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_those_of_the_published_definition(backend, n, r, k):
    x, y = (reference.on_a_grid(side) for side in gaussian_pair(n, r, 1.0))
    found = ops.ksg_information(x, y, k, backend=backend)
    assert float(found) == pytest.approx(published_definition(x[0], y[0], k), abs=1e-6)


def test_tiles_of_rows_change_nothing(monkeypatch):
    x, y = points(2, 150, 2, "general"), points(3, 150, 2, "general")
    whole = ops.ksg_information(x, y, 4, 2)
    monkeypatch.setattr(calls, "KSG_TILE_BYTES", 40_000)  # a dozen rows
    torch.testing.assert_close(ops.ksg_information(x, y, 4, 2), whole)


def spiral(n, noise=0.1):
    """A noisy Archimedean spiral and its information, by integration over a fine grid."""

    def curve(t):
        return t * np.cos(2 * np.pi * t), t * np.sin(2 * np.pi * t)

    along = np.linspace(0.5, 2.5, 4001)
    grid = np.linspace(-3.2, 3.2, 801)
    near = [np.exp(-((grid - c[:, None]) ** 2) / (2 * noise**2)) for c in curve(along)]
    joint = near[0].T @ near[1]
    joint /= joint.sum()
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 1e-300
    truth = float((joint[seen] * np.log(joint[seen] / product[seen])).sum())
    rng = np.random.default_rng(0)
    drawn = np.stack(curve(rng.uniform(0.5, 2.5, n))) + noise * rng.standard_normal((2, n))
    return torch.from_numpy(drawn)[:, None, :, None], truth


def heavy_tails(n, nats=1.0):
    """Cubes of Gaussian coordinates: kurtosis 46, and the information of the coordinates."""
    return [side**3 for side in gaussian_pair(n, 1, nats)], nats


def uniform(n, nats=1.0):
    """Uniform margins under a Gaussian copula: the information is the copula's."""
    return [torch.special.ndtr(side) for side in gaussian_pair(n, 1, nats)], nats


@pytest.mark.parametrize(
    ("case", "gaussian_error"),
    [(uniform, (0.02, 0.3)), (heavy_tails, (0.1, 0.6)), (spiral, (0.5, 3.0))],
    ids=["uniform margins", "heavy tails", "spiral"],
)
@pytest.mark.parametrize("variant", [1, 2])
def test_other_than_gaussian_truths_are_found_by_neighbours_alone(case, gaussian_error, variant):
    (x, y), truth = case(4000)
    found = float(es.mutual_information(x, y, "ksg", components=1, k=4, variant=variant))
    assert found == pytest.approx(truth, abs=0.06)
    low, high = gaussian_error  # the Gaussian estimator misses what is not linear
    assert low < truth - float(es.mutual_information(x, y, components=1)) < high


@pytest.mark.parametrize("nats", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("r", [1, 2])
def test_few_components_carry_the_truth(r, nats):
    x, y = gaussian_pair(3000, r, nats, d_x=40, d_y=50)
    found = float(es.mutual_information(x, y, "ksg", components=r))
    assert found == pytest.approx(nats, abs=0.08 + 0.03 * nats)


def test_maps_within_a_layer_and_exchange_leave_it():
    x, y = gaussian_pair(800, 2, 1.0)
    turned = 3 * x @ torch.linalg.qr(torch.randn(2, 2).double()).Q + 7
    base = es.mutual_information(x, y, "ksg")
    torch.testing.assert_close(es.mutual_information(y, x, "ksg"), base.T)
    # Axes of a max-norm turn with the components, up to their signs.
    torch.testing.assert_close(es.mutual_information(turned, y, "ksg"), base, rtol=0, atol=1e-3)


def test_the_order_of_a_noisy_chain_is_recovered():
    state = torch.randn(1500, 2).double()
    chain = [state]
    for _ in range(3):
        chain.append(chain[-1] + 0.7 * torch.randn(1500, 2).double())
    nats = es.mutual_information(chain[0][None], torch.stack(chain[1:]), "ksg")[0]
    assert bool((nats[:-1] > nats[1:]).all())


def test_independent_layers_lie_within_the_null_and_related_ones_above():
    x, y = gaussian_pair(400, 2, 1.0, d_x=30, d_y=20)
    _, other = gaussian_pair(400, 2, 1.0, d_y=20, seed=9)
    with warnings.catch_warnings():  # whether it says so hangs on the draw
        warnings.simplefilter("ignore", UserWarning)
        both = torch.cat([y, other])
        measured = es.mutual_information(x, both, "ksg", components=2, null=40)
    assert float(measured.z_score[0, 0]) > 8 and abs(float(measured.z_score[0, 1])) < 3.5


def test_intervals_cover_the_truth():
    pairs = [gaussian_pair(300, 1, 0.7, seed=s) for s in range(24)]
    x, y = (torch.cat(side) for side in zip(*pairs))
    measured = es.mutual_information(x, y, "ksg", bootstrap=60)
    low, high, nats = (t.diagonal() for t in (measured.low, measured.high, measured.nats))
    assert int(((low <= 0.7) & (high >= 0.7)).sum()) >= 19
    assert 2.5 * float(nats.std()) < float((high - low).mean()) < 6.5 * float(nats.std())


def test_the_information_of_layers_grows_past_the_few_components_only_on_request():
    x, y = gaussian_pair(200, 12, 2.0)
    with pytest.raises(ValueError, match="at most 8 .*underestimates.*max_components=12"):
        es.mutual_information(x, y, "ksg", components=12)
    assert correlation_of(2.0, 12) > 0.5
    found = float(es.mutual_information(x, y, "ksg", components=12, max_components=12))
    assert math.isfinite(found) and found < 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 80}, "k must be an integer between 1 and .*79; came 80"),
        ({"k": 0}, "came 0"),
        ({"variant": 3}, "variant must be 1 or 2, came 3"),
        ({"components": 13}, "between 1 and the width 12, came 13"),
        ({"backend": "torch"}, "does not implement ksg_counts"),
        ({"estimator": "gaussian", "k": 5}, "belong to estimator='ksg'"),
    ],
)
def test_bad_options_are_refused(make_states, options, message):
    x = make_states().states
    with pytest.raises(ValueError, match=message):
        es.mutual_information(x, x, **({"estimator": "ksg"} | options))


def test_bad_layers_are_refused(make_states):
    x = make_states().states
    constant = torch.cat([x, torch.full_like(x[:1], 0.1)])
    for left, right, message in [
        (constant, x, r"x\[3\] is constant"),
        (x, x[:, :40], "over the same N"),
        (x[:, :3], x[:, :3], "between 1 and the number of other examples, 2"),
        (x, x * float("inf"), r"y\[0\] must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            es.mutual_information(left, right, "ksg")
    with pytest.raises(ValueError, match="6 components need at least 7 examples, came 6"):
        es.mutual_information(x[:, :6], x[:, :6], "ksg", components=6)


def test_the_extension_says_what_it_cannot_serve():
    assert "is not the CPU" in native.why_not_ksg(torch.device("cuda"), torch.float32)
    with pytest.raises(ops.BackendError, match="float64 is not torch.float32"):
        ops.ksg_counts(*[torch.zeros(1, 2, 2).double()] * 2, 1, backend="native")
    with pytest.raises(ValueError, match="distances .* over the same points"):
        ops.ksg_counts(torch.zeros(1, 2, 5), torch.zeros(1, 2, 6), 1)
