"""Three ways to compute one machine: the same results, a readable choice, bounded memory."""

import json
import sys

import pytest
import torch

import expertsteer as es
from expertsteer.ops import products
from expertsteer.rfm import plan
from expertsteer.rfm.plan import REGIMES
from helpers.command import python
from helpers.problems import problem

SETTINGS = [
    {},
    {"center_grads": True, "bandwidth": 1.0},
    {"bandwidth": 10.0, "bandwidth_mode": "constant", "normalize": "max", "reg": 0.01},
]


def fitted(regime, dtype, settings, outputs, n=60, d=40, **more):
    """At n = 1.5 d, where the cost model changes its mind."""
    X, y = (t.to(dtype) for t in problem(n, d, outputs))
    held = (t.to(dtype) for t in problem(30, d, outputs, seed=1))
    return es.RFM(iters=3, regime=regime, **settings, **more).fit(X, y, *held)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-4)])
def test_every_regime_is_the_reference_in_double_precision(
    regime, settings, outputs, dtype, tolerance
):
    exact = fitted("gram", torch.float64, settings, outputs, backend="reference")
    got = fitted(regime, dtype, settings, outputs)
    new, _ = problem(11, 40, outputs, seed=2)
    assert got.plan_.regime == regime
    assert (got.predict(new.to(dtype)).double() - exact.predict(new)).abs().max() < tolerance
    torch.testing.assert_close(
        torch.tensor(got.validation_), torch.tensor(exact.validation_), rtol=0, atol=tolerance
    )
    if got.best_iter_ != exact.best_iter_:  # only where rounding decides between equals
        assert dtype == torch.float32
        return
    ours, theirs = got.directions(2), exact.directions(2)
    assert float(ours.vectors[0].double() @ theirs.vectors[0]) > 1 - tolerance
    for name in ("eigenvalues", "explained"):
        a, b = getattr(ours, name).double(), getattr(theirs, name)
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=0)


def test_directions_are_the_eigenvectors_of_the_metric():
    X, y = problem(40, 9)
    for regime in REGIMES:
        found = es.RFM(regime=regime, iters=2).fit(X, y).directions(9)
        identity = found.vectors @ found.vectors.T
        torch.testing.assert_close(identity, torch.eye(9).double(), atol=1e-6, rtol=0)
        assert bool((found.eigenvalues.diff() <= 1e-12).all())
        assert float(found.explained.sum()) == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match=r"k must be an integer between 1 and min\(N, D\) = 9"):
        es.RFM().fit(X, y).directions(10)


@pytest.mark.parametrize("library", ["onednn", "blas"])
def test_either_library_of_products_serves_every_shape(library, monkeypatch):
    if library == "blas":
        monkeypatch.setattr(products, "onednn_serves", lambda dtype: False)
    elif not products.onednn_serves(torch.float32):
        pytest.skip("oneDNN is not the faster library on this processor")
    for n in (1, 2, 17, 450, 801):
        a, b = torch.randn(n, 33), torch.randn(7, 33)
        torch.testing.assert_close(products.times_transposed(a, b), a @ b.T)
        out = torch.full((n, n), float("nan"))
        products.symmetric_lower(a, a, out)
        torch.testing.assert_close(out.tril(), (a @ a.T).tril(), atol=1e-4, rtol=1e-5)
        matrix = (a @ a.T).div_(33).add_(torch.eye(n))
        expected = torch.linalg.solve(matrix.double(), a.double())
        lower = matrix.masked_fill(torch.ones(n, n).triu(1).bool(), float("nan"))
        solution, definite = products.cholesky_solve(lower, a.contiguous())
        assert definite
        torch.testing.assert_close(solution.double(), expected, atol=1e-4, rtol=1e-4)
        assert not products.cholesky_solve(-torch.eye(n), a)[1]


def test_the_plan_follows_cost_and_memory_and_can_be_overridden():
    assert plan(500, 4096).regime == "gram"
    assert plan(1400, 1000).regime == "gram" and plan(2500, 1000).regime == "feature"
    tight = plan(20_000, 2048, memory_budget=1 << 30)
    assert tight.regime == "streamed" and "over the budget" in tight.reason
    assert max(tight.bytes["streamed"], 0) <= tight.memory_budget < tight.bytes["feature"]
    assert plan(500, 4096, regime="feature").regime == "feature"
    with pytest.raises(
        ValueError, match="needs .* bytes beside the data .* memory_budget is 1,000"
    ):
        plan(500, 4096, regime="gram", memory_budget=1000)
    with pytest.raises(ValueError, match="raise memory_budget$"):
        plan(20_000, 2048, memory_budget=1 << 20)
    with pytest.raises(ValueError, match="regime must be 'auto' or one of"):
        es.RFM(regime="fast")
    with pytest.raises(ValueError, match="memory_budget must be a positive"):
        es.RFM(memory_budget=-1)


@pytest.mark.parametrize("bandwidth_mode", ["median", "constant"])
def test_tiles_that_are_not_kept_change_nothing(bandwidth_mode):
    settings = {"bandwidth_mode": bandwidth_mode, "iters": 2, "center_grads": True}
    X, y = problem(900, 20)
    least = plan(900, 20, iters=2, dtype=torch.float64).bytes["streamed"]
    machines = [
        es.RFM(regime="streamed", memory_budget=budget, **settings).fit(X, y)
        for budget in (least, 1 << 30)
    ]
    fits = [m._fitted.parts[0].kept[0].fits for m in machines]
    assert fits[0].room < 900 * 900 * 4 < fits[1].room  # one keeps almost no tile, one keeps all
    torch.testing.assert_close(machines[0].direction_, machines[1].direction_)
    gram = es.RFM(regime="gram", **settings).fit(X, y)
    new, _ = problem(50, 20, seed=1)
    torch.testing.assert_close(machines[0].predict(new), gram.predict(new), atol=1e-8, rtol=0)


def test_forgotten_steps_come_back_to_the_bit():
    X = torch.stack([problem(50, 60, seed=s)[0] for s in range(4)])
    y = torch.stack([problem(50, 60, seed=s)[1] for s in range(4)])[..., None]
    one = plan(50, 60, iters=3, dtype=torch.float64).bytes["gram"]
    small = es.RFM(memory_budget=round(2.5 * one)).fit(X, y)
    large = es.RFM().fit(X, y)
    kept = [bool(p.kept[0].fits.steps) for p in small._fitted.parts]
    assert (
        any(kept) and not all(kept) and all(bool(p.kept[0].fits.steps) for p in large._fitted.parts)
    )
    assert torch.equal(small.predict(X), large.predict(X))
    assert kept == [bool(p.kept[0].fits.steps) for p in small._fitted.parts]  # dropped again
    assert torch.equal(small.directions(2).vectors, large.directions(2).vectors)


PEAK = """
import json, sys, torch
import expertsteer as es
from helpers.memory import peak
n, d, regime, budget, iters = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
X = torch.randn(n, d)
y = (X[:, 0] * X[:, 1] + X[:, 2] > 0).float()
options = dict(regime=regime, memory_budget=budget, iters=iters)
es.RFM(**{**options, "memory_budget": None}).fit(X[:300], y[:300])  # libraries' own memory
before = peak()
rfm = es.RFM(**options).fit(X, y)
print(json.dumps({"used": peak() - before, "planned": rfm.plan_.bytes[rfm.plan_.regime]}))
"""


def peak(n, d, regime, budget, iters=2, **environment):
    arguments = json.dumps([n, d, regime, budget, iters])
    return json.loads(python("-c", PEAK, arguments, **environment))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux reports it")
@pytest.mark.parametrize("regime", ["gram", "feature"])
def test_no_more_square_matrices_than_planned(regime):
    n, d = 2500, 64
    # Matrices are counted here: what is freed goes back at once, else glibc may keep one.
    measured = peak(n, d, regime, None, MALLOC_MMAP_THRESHOLD_="131072")
    matrix = 4 * n * n
    # The plan counts (4 + 2 iters) n x n matrices in Gram space and 2 in feature space.
    assert measured["planned"] // matrix == (8 if regime == "gram" else 2)
    assert matrix < measured["used"] < 1.1 * measured["planned"] + 0.25 * matrix


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux reports it")
@pytest.mark.parametrize("megabytes", [60, 120])
def test_streaming_respects_its_budget(megabytes):
    budget = megabytes << 20
    measured = peak(6000, 64, "auto", budget, iters=1)  # one n x n is 144 MB
    assert 0.3 * budget < measured["used"] < 1.1 * budget
