"""What must hold for every data set, and what happens on those that break solvers."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import expertsteer as es
from expertsteer.rfm import streamed
from expertsteer.rfm.pcg import NotSolvedError
from expertsteer.rfm.plan import REGIMES
from helpers.problems import problem

exact_many = settings(max_examples=15, deadline=None, derandomize=True)
machines = st.builds(
    lambda **options: es.RFM(iters=2, **options),
    regime=st.sampled_from(REGIMES),
    bandwidth=st.sampled_from([1.0, 3.0]),
    reg=st.sampled_from([0.03, 0.3]),
    center_grads=st.booleans(),
)


@st.composite
def problems(draw):
    """Points, labels, new points; sizes on either side of n = d."""
    n, d = draw(st.integers(8, 40)), draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    X, new = (torch.randn(m, d, generator=generator, dtype=torch.float64) for m in (n, 5))
    y = (X[:, 0] * X[:, 1] > 0).double()
    y[0], y[1] = 0, 1
    return X, y, new


def same_up_to_ties(rfm, ours, theirs):
    """Directions agree unless the two leading eigenvalues do, which makes any mixture right."""
    values = rfm.directions(2).eigenvalues
    if float(values[1]) > 0.999 * float(values[0]):
        return
    assert abs(float(ours @ theirs)) > 1 - 1e-6


@exact_many
@given(problems(), machines, st.integers(0, 1000))
def test_rotation_and_translation_carry_over(data, rfm, seed):
    X, y, new = data
    generator = torch.Generator().manual_seed(seed)
    d = X.shape[1]
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    shift = 10 * torch.randn(d, generator=generator, dtype=torch.float64)
    rfm.fit(X, y)
    moved = rfm.unfitted().fit(X @ rotation + shift, y)
    torch.testing.assert_close(
        moved.predict(new @ rotation + shift), rfm.predict(new), atol=1e-7, rtol=0
    )
    same_up_to_ties(rfm, moved.direction_, rfm.direction_ @ rotation)


@exact_many
@given(problems(), machines, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(data, rfm, random):
    X, y, new = data
    order = list(range(len(X)))
    random.shuffle(order)
    rfm.fit(X, y)
    shuffled = rfm.unfitted().fit(X[order], y[order])
    torch.testing.assert_close(shuffled.predict(new), rfm.predict(new), atol=1e-7, rtol=0)
    same_up_to_ties(rfm, shuffled.direction_, rfm.direction_)


@exact_many
@given(problems(), machines)
def test_flipped_labels_flip_the_direction(data, rfm):
    X, y, _ = data
    rfm.fit(X, y)
    # Labels -y are the flip without a constant, which a machine without intercept would notice.
    flipped = rfm.unfitted().fit(X, -y)
    torch.testing.assert_close(flipped.direction_, -rfm.direction_, atol=1e-6, rtol=0)


@exact_many
@given(problems(), machines, st.floats(-3, 3))
def test_with_a_median_bandwidth_the_scale_of_states_does_not_matter(data, rfm, exponent):
    X, y, new = data
    scale = 10.0**exponent
    rfm.fit(X, y)
    scaled = rfm.unfitted().fit(scale * X, y)
    torch.testing.assert_close(scaled.predict(scale * new), rfm.predict(new), atol=1e-7, rtol=0)
    assert float(scaled.bandwidth_) > 0
    same_up_to_ties(rfm, scaled.direction_, rfm.direction_)


def test_a_failed_factorisation_raises_the_ridge_and_says_so():
    X, y = problem(dtype=torch.float32)
    X, y = X.repeat(20, 1), y.repeat(20)  # a kernel matrix of rank 60 out of 1200
    rfm = es.RFM(reg=1e-12, iters=1, regime="gram")
    with pytest.warns(RuntimeWarning, match=r"problems \[0\] was not positive definite.*ridge_"):
        rfm.fit(X, y)
    assert bool((rfm.ridge_ > 1e-12).any()) and bool((rfm.ridge_ < 1e-2).all())
    assert bool(torch.isfinite(rfm.direction_).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calm = es.RFM(reg=0.1, iters=1, regime="gram").fit(X, y)
    assert calm.ridge_.tolist() == pytest.approx([0.1, 0.1])


def test_a_solver_that_stalls_raises_the_ridge_and_says_so(monkeypatch):
    solve = streamed.solve_iteratively

    def stalls_below_one_percent(tiles, y, reg, rank):
        if reg < 0.01:
            raise NotSolvedError("stalled")
        return solve(tiles, y, reg, rank)

    monkeypatch.setattr(streamed, "solve_iteratively", stalls_below_one_percent)
    X, y = problem(dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="not positive definite.*ridge_"):
        rfm = es.RFM(reg=2e-4, iters=1, regime="streamed").fit(X, y)
    assert rfm.ridge_.tolist() == pytest.approx([0.02, 0.02])
    enough = es.RFM(reg=0.02, iters=1, regime="streamed").fit(X, y)
    torch.testing.assert_close(rfm.direction_, enough.direction_)


@pytest.mark.parametrize("regime", REGIMES)
def test_duplicates_and_constant_columns_change_no_rule(regime):
    X, y = problem()
    X, y = X.repeat(2, 1), y.repeat(2)
    X[:, 5] = 7.0
    rfm = es.RFM(regime=regime).fit(X, y)
    assert bool(torch.isfinite(rfm.direction_).all())
    assert abs(float(rfm.direction_[5])) < 1e-9  # a constant column explains nothing
    once = es.RFM(regime=regime, reg=0.05, bandwidth_mode="constant", bandwidth=20.0)
    twice = es.RFM(regime=regime, reg=0.1, bandwidth_mode="constant", bandwidth=20.0)
    # Every row twice at reg is every row once at reg / 2, as for any kernel ridge regression; the
    # two metrics differ by a factor of 2 sqrt(2) at most, so one fit is compared.
    a = once.fit(X[:60], y[:60], X[:5], once_first(once, X[:60], y[:60], X[:5]))
    b = twice.fit(X, y, X[:5], once_first(twice, X, y, X[:5]))
    assert a.best_iter_ == b.best_iter_ == 0
    torch.testing.assert_close(a.predict(X[:9]), b.predict(X[:9]), atol=1e-6, rtol=0)


def once_first(rfm, X, y, new):
    """What the first fit predicts: plain kernel ridge regression."""
    distance = torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist")
    kernel = torch.exp(-distance / rfm.bandwidth) + rfm.reg * torch.eye(len(X)).double()
    there = torch.cdist(new, X, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-there / rfm.bandwidth) @ torch.linalg.solve(kernel, y)


@pytest.mark.parametrize("regime", REGIMES)
def test_two_rows_are_enough_and_point_from_one_to_the_other(regime):
    X = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]).double()
    rfm = es.RFM(regime=regime).fit(X, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(rfm.direction_, torch.tensor([1.0, 0.0, 0.0]).double())


@pytest.mark.parametrize("regime", REGIMES)
def test_one_huge_row_takes_no_digits_from_the_others(regime):
    X, y = problem()
    X[7] *= 1e6
    exact = es.RFM(regime=regime).fit(X, y)
    single = es.RFM(regime=regime).fit(X.float(), y.float())
    assert float(single.direction_.double() @ exact.direction_) > 1 - 1e-4
    others = [i for i in range(60) if i != 7]
    without = es.RFM(regime=regime).fit(X[others], y[others])
    # The sign is a correlation, which one huge row decides.
    assert abs(float(exact.direction_ @ without.direction_)) > 0.999


@pytest.mark.parametrize("far", [1e3, 1e4])
def test_a_far_centre_takes_no_digits(far):
    X, y = problem(dtype=torch.float32)
    moved = (X.double() + far).float()
    exact = es.RFM().fit(moved.double(), y.double())
    assert float(es.RFM().fit(moved, y).direction_.double() @ exact.direction_) > 1 - 1e-4


def test_data_without_an_answer_is_refused():
    X, y = problem(dtype=torch.float32)
    cases = [
        ((X, torch.ones_like(y)), "y is the same in every row"),
        ((X.clone().fill_diagonal_(float("nan")), y), "X must be finite"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            es.RFM().fit(*arguments)
    X, y = problem(dtype=torch.float32)
    with pytest.raises(ValueError, match="y must be finite"):
        es.RFM().fit(X, y.masked_fill(y > 0, float("inf")))
    with pytest.raises(ValueError, match="AUC needs both classes"):
        es.RFM(tuning_metric="auc").fit(X, y, X[:4], torch.ones(4))
    rfm = es.RFM().fit(X, y)
    with pytest.raises(ValueError, match="AUC needs both classes"):
        rfm.score(X, torch.zeros(60))
    with pytest.raises(ValueError, match="metric must be one of"):
        rfm.score(X, y, "f1")


def test_scores_are_what_scikit_learn_says():
    metrics = pytest.importorskip("sklearn.metrics")
    X, y = problem()
    new, target = X[40:], y[40:]
    rfm = es.RFM().fit(X[:40], y[:40])
    outputs = rfm.predict(new)
    assert rfm.score(new, target) == pytest.approx(metrics.roc_auc_score(target, outputs))
    assert rfm.score(new, target, "accuracy") == metrics.accuracy_score(target, outputs > 0.5)
    assert rfm.score(new, target, "mse") == pytest.approx(
        metrics.mean_squared_error(target, outputs)
    )
    three = torch.nn.functional.one_hot((X[:, 0] > 0).long() + (X[:, 1] > 0), 3).double()
    rfm.fit(X[:40], three[:40])
    expected = metrics.accuracy_score(three[40:].argmax(1), rfm.predict(new).argmax(1))
    assert rfm.score(new, three[40:], "accuracy") == expected


@pytest.mark.parametrize(("n", "d"), [(40, 64), (40, 30)])
@pytest.mark.parametrize("outputs", [1, 2])
def test_points_that_nearly_coincide_leave_the_direction_what_it_is(n, d, outputs):
    """A quarter of the points are copies, with other labels, 5e-4 of the usual distance away."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, d, generator=generator)
    x[:10] = x[10:20] + 5e-4 * torch.randn(10, d, generator=generator)
    y = (x[:, :1] > 0).float() + torch.randn(n, outputs, generator=generator)
    options = {"bandwidth": 3.0, "reg": 0.1, "iters": 1, "regime": "gram"}
    single, double = (
        es.RFM(**options).fit(x.to(t), y.to(t)) for t in (torch.float32, torch.float64)
    )
    found, exact = single.directions(k=1), double.directions(k=1)
    cosine = (found.vectors[0].double() @ exact.vectors[0]).abs()
    assert float(cosine) > 0.95
    # How much it explains depends on distances that single precision hardly has; it is a share.
    assert 0 < float(found.explained[0]) <= 1 + 1e-5
