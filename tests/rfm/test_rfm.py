"""The recurrence against a direct d-space machine, xRFM, and what geometry says must hold."""

import pytest
import torch

import expertsteer as es


def direct(X, y, new, *, bandwidth, mode, reg, fits, normalize="none", centre=False):
    """The textbook machine with its d x d metric: metrics M_0.. and predictions per fit."""
    y = y.reshape(len(X), -1)
    n, d = X.shape
    metric, metrics, predictions = torch.eye(d, dtype=X.dtype), [], []
    for _ in range(fits):
        metrics.append(metric)
        difference = X[:, None] - X[None]
        distance = torch.einsum("ijd,de,ije->ij", difference, metric, difference).clamp(0).sqrt()
        upper = torch.triu_indices(n, n, 1)
        length = bandwidth * (distance[upper[0], upper[1]].median() if mode == "median" else 1.0)
        kernel = torch.exp(-distance / length)
        alpha = torch.linalg.solve(kernel + reg * torch.eye(n, dtype=X.dtype), y)
        gap = new[:, None] - X[None]
        there = torch.einsum("ijd,de,ije->ij", gap, metric, gap).clamp(0).sqrt()
        predictions.append(torch.exp(-there / length) @ alpha)
        weights = torch.where(distance > 1e-10, kernel / (length * distance.clamp(1e-10)), 0.0)
        gradients = torch.cat(
            [-torch.einsum("ij,j,ijd->id", weights, a, difference) @ metric for a in alpha.mT]
        )
        if centre:
            gradients = gradients - gradients.mean(dim=0)
        metric = gradients.mT @ gradients
        if normalize == "max":
            metric = metric / metric.max()
    return [*metrics, metric], predictions


def problem(n=50, d=12, outputs=1, seed=0, offset=2.0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    columns = [X[:, c] * X[:, c + 1] > 0 for c in range(outputs)]
    y = torch.stack(columns, dim=1).double()
    return X + offset, (y[:, 0] if outputs == 1 else y)


def top(metric):
    return torch.linalg.eigh(metric).eigenvectors[:, -1]


SETTINGS = [
    {"bandwidth": 3.0, "bandwidth_mode": "median", "reg": 0.1},
    {"bandwidth": 1.0, "bandwidth_mode": "median", "reg": 1e-3},
    {"bandwidth": 10.0, "bandwidth_mode": "constant", "normalize": "max", "reg": 0.1},
    {"bandwidth": 2.0, "bandwidth_mode": "median", "reg": 0.1, "center_grads": True},
    {"bandwidth": 5.0, "bandwidth_mode": "constant", "normalize": "max", "center_grads": True},
]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("n", "d"), [(50, 12), (17, 33)])
def test_the_recurrence_is_the_direct_machine(settings, outputs, n, d):
    X, y = problem(n, d, outputs)
    new, _ = problem(11, d, outputs, seed=1)
    rfm = es.RFM(iters=3, **settings).fit(X, y)
    metrics, predictions = direct(
        X,
        y,
        new,
        bandwidth=settings["bandwidth"],
        mode=settings["bandwidth_mode"],
        reg=settings.get("reg", 0.1),
        fits=4,
        normalize=settings.get("normalize", "none"),
        centre=settings.get("center_grads", False),
    )
    torch.testing.assert_close(
        rfm.predict(new).reshape(predictions[3].shape), predictions[3], rtol=0, atol=1e-9
    )
    cosine = rfm.direction_ @ top(metrics[3])
    assert abs(abs(float(cosine)) - 1) < 1e-9
    assert float(rfm.direction_.norm()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("tuning_metric", ["mse", "auc"])
def test_the_best_fit_on_validation_rows_is_kept(tuning_metric):
    X, y = problem(60, 8)
    X_val, y_val = problem(40, 8, seed=1)
    rfm = es.RFM(iters=4, tuning_metric=tuning_metric).fit(X, y, X_val, y_val)
    metrics, predictions = direct(X, y, X_val, bandwidth=3.0, mode="median", reg=0.1, fits=5)
    errors = [float((p[:, 0] - y_val).square().mean()) for p in predictions]
    if tuning_metric == "mse":
        assert rfm.validation_ == pytest.approx(errors)
        assert rfm.best_iter_ == min(range(5), key=errors.__getitem__)
    else:
        assert rfm.validation_[rfm.best_iter_] == max(rfm.validation_)
    best = rfm.best_iter_
    torch.testing.assert_close(rfm.predict(X_val), predictions[best][:, 0], rtol=0, atol=1e-9)
    assert abs(float(rfm.direction_ @ top(metrics[max(best, 1)]))) > 1 - 1e-9


def test_a_first_fit_that_is_best_still_has_a_direction():
    X, y = problem(40, 6)
    y_val = es.RFM(iters=1, bandwidth=1.0).fit(X, y)
    first = direct(X, y, X, bandwidth=1.0, mode="median", reg=0.1, fits=1)
    rfm = es.RFM(bandwidth=1.0).fit(X, y, X, first[1][0][:, 0])  # labels the first fit predicts
    assert rfm.best_iter_ == 0
    assert abs(float(rfm.direction_ @ top(first[0][1]))) > 1 - 1e-9
    assert y_val.best_iter_ == 1


def test_a_batch_is_its_problems_one_by_one():
    problems = [problem(40, 9, seed=s) for s in range(3)]
    held = [problem(25, 9, seed=10 + s) for s in range(3)]
    X, y = (torch.stack(t) for t in zip(*problems))
    X_val, y_val = (torch.stack(t) for t in zip(*held))
    rfm = es.RFM(iters=3).fit(X, y[..., None], X_val, y_val[..., None])
    assert rfm.direction_.shape == (3, 9) and rfm.predict(X_val).shape == (3, 25, 1)
    for b in range(3):
        alone = es.RFM(iters=3).fit(*problems[b], *held[b])
        assert int(rfm.best_iter_[b]) == alone.best_iter_
        torch.testing.assert_close(rfm.direction_[b], alone.direction_)
        torch.testing.assert_close(rfm.predict(X_val)[b, :, 0], alone.predict(X_val[b]))


def test_one_label_vector_serves_every_layer_of_a_batch():
    X, y = problem(30, 7)
    rfm = es.RFM().fit(torch.stack([X, 2 * X]), y)
    torch.testing.assert_close(rfm.direction_[0], rfm.direction_[1])  # median bandwidth: scale-free


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("center", [False, True])
def test_constant_max_is_xrfm(center):
    xrfm = pytest.importorskip("xrfm.rfm_src.recursive_feature_machine")
    X, y = problem(60, 10, offset=0.0)
    X_val, y_val = problem(40, 10, seed=1, offset=0.0)
    peer = xrfm.RFM(
        "l2_high_dim", iters=3, bandwidth=10.0, device="cpu", verbose=False, tuning_metric="mse"
    )
    peer.fit(
        (X, y[:, None]),
        (X_val, y_val[:, None]),
        reg=0.1,
        center_grads=center,
        solver="cholesky",
        verbose=False,
        early_stop_rfm=False,
    )
    ours = es.RFM(
        bandwidth=10.0, bandwidth_mode="constant", normalize="max", center_grads=center
    ).fit(X, y, X_val, y_val)
    # xRFM leaves best_iter None where the last fit is the best.
    assert ours.best_iter_ == (3 if peer.best_iter is None else peer.best_iter) > 0
    expected = peer.predict(X_val).double()[:, 0]
    torch.testing.assert_close(ours.predict(X_val), expected, rtol=0, atol=1e-6)
    assert abs(float(ours.direction_ @ top(peer.M.double()))) > 1 - 1e-6


def test_translation_and_rotation_of_the_points_carry_over():
    X, y = problem(45, 10)
    q = torch.linalg.qr(torch.randn(10, 10).double()).Q
    base, moved = es.RFM().fit(X, y), es.RFM().fit(X @ q + 100.0, y)
    torch.testing.assert_close(moved.direction_, base.direction_ @ q, rtol=0, atol=1e-7)
    torch.testing.assert_close(moved.predict(X @ q + 100.0), base.predict(X), rtol=0, atol=1e-7)


def test_order_of_rows_does_not_matter_and_flipped_labels_flip_the_direction():
    X, y = problem(45, 10)
    order = torch.randperm(45)
    base = es.RFM().fit(X, y).direction_
    torch.testing.assert_close(es.RFM().fit(X[order], y[order]).direction_, base)
    signed = es.RFM().fit(X, 2 * y - 1).direction_
    torch.testing.assert_close(es.RFM().fit(X, 1 - 2 * y).direction_, -signed)


def test_it_finds_a_direction_where_mean_difference_cannot():
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(800, 15, generator=generator, dtype=torch.float64)
    planted = torch.linalg.qr(torch.randn(15, 1, generator=generator).double()).Q[:, 0]
    y = ((X @ planted).abs() > 0.6745).double()  # both classes have the same mean
    found = abs(float(es.RFM(iters=4).fit(X, y).direction_ @ planted))
    difference = X[y == 1].mean(0) - X[y == 0].mean(0)
    assert found > 0.97
    assert abs(float(difference @ planted / difference.norm())) < 0.5


def test_single_precision_follows_double():
    X, y = problem(120, 40, offset=20.0)
    X = X.float().double()  # the same points for both: only the arithmetic differs
    double, single = es.RFM().fit(X, y), es.RFM().fit(X.float(), y.float())
    assert single.direction_.dtype == torch.float32
    assert float(single.direction_.double() @ double.direction_) > 1 - 1e-5
    new = problem(50, 40, seed=1, offset=20.0)[0].float().double()
    torch.testing.assert_close(
        single.predict(new.float()).double(), double.predict(new), rtol=0, atol=2e-4
    )


def test_duplicate_rows_and_two_rows_are_fine():
    X, y = problem(20, 5)
    twice = es.RFM().fit(torch.cat([X, X]), torch.cat([y, y]))
    assert bool(torch.isfinite(twice.direction_).all())
    pair = es.RFM().fit(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(pair.direction_, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"reg": -1.0}, "reg must be positive"),
        ({"iters": 0}, "iters must be at least 1"),
        ({"bandwidth_mode": "auto"}, "bandwidth_mode must be one of"),
        ({"normalize": "trace"}, "normalize must be one of"),
        ({"tuning_metric": "f1"}, "tuning_metric must be one of"),
    ],
)
def test_bad_settings_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        es.RFM(**settings)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_states_and_labels_does_not_matter(scale):
    X, y = problem(60, 10)
    base = es.RFM().fit(X.float(), y.float()).direction_
    scaled = es.RFM().fit(scale * X.float(), y.float()).direction_
    assert float(base @ scaled) > 1 - 1e-4
    assert float(es.RFM().fit(X.float(), 1e10 * y.float()).direction_ @ base) > 1 - 1e-4


def test_a_fit_without_gradients_is_an_error_not_a_direction():
    X, y = problem(30, 6)
    with pytest.raises(ValueError, match="vanish or overflow at bandwidth=1e-05"):
        es.RFM(bandwidth=1e-5, bandwidth_mode="constant").fit(X, y)
    both = torch.stack([y, torch.zeros_like(y)])[..., None]
    with pytest.raises(ValueError, match=r"y is the same in every row of problems \[1\]"):
        es.RFM().fit(torch.stack([X, X]), both)
    with pytest.raises(ValueError, match="backend must be one of"):
        es.RFM(backend="fast")


def test_states_that_require_gradients_are_fine_and_leak_none():
    X, y = problem(30, 6)
    assert not es.RFM().fit(X.requires_grad_(), y).direction_.requires_grad


def test_bad_data_is_refused():
    X, y = problem(10, 3)
    cases = [
        ((X[:1], y[:1]), "at least 2 rows"),
        ((X, y[:5]), "y must be"),
        ((X.long(), y), "X must be a floating point tensor"),
        ((X * float("nan"), y), "X must be finite"),
        ((X * 0 + 1, y), "all rows of X are equal"),
        ((X, y, X), "given together"),
        ((X, y, X[:, :2], y), "must match X"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            es.RFM().fit(*arguments)
    with pytest.raises(ValueError, match="not fitted"):
        es.RFM().predict(X)
    with pytest.raises(ValueError, match="3 columns"):
        es.RFM().fit(X, y).predict(X[:, :2])
