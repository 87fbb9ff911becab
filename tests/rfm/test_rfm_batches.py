"""Many problems and settings at once: each as if it were alone, and the best one kept."""

from dataclasses import replace

import pytest
import torch

import expertsteer as es
from expertsteer.rfm import machine, plan
from expertsteer.rfm.plan import REGIMES
from helpers.problems import problem


def in_lockstep(monkeypatch, problems, settings=1):
    """What a GPU does: several problems, and settings of a grid, in one batch."""

    def planned(*args, **kwargs):
        return replace(plan(*args, **kwargs), problems_at_once=problems, settings_at_once=settings)

    monkeypatch.setattr(machine, "plan", planned)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("lockstep", [1, 2, 5])
@pytest.mark.parametrize("regime", REGIMES)
def test_ragged_problems_are_their_problems_one_by_one(lockstep, regime, backend, monkeypatch):
    if regime == "streamed" and lockstep > 1:
        pytest.skip("streamed problems are taken one at a time")
    sizes, val_sizes = [30, 17, 30, 2, 25], [9, 20, 5, 20, 20]
    X = torch.full((5, 30, 12), float("nan")).double()  # padding may hold anything
    y, X_val, y_val = X[..., :2].clone(), X[:, :20].clone(), X[:, :20, :2].clone()
    for b, (n, m) in enumerate(zip(sizes, val_sizes)):
        X[b, :n], y[b, :n] = problem(n, 12, 2, seed=b)
        X_val[b, :m], y_val[b, :m] = problem(m, 12, 2, seed=10 + b)
        y[b, 0], y[b, 1] = 1, 0
    in_lockstep(monkeypatch, lockstep)
    options = {"regime": regime, "backend": backend, "center_grads": True, "iters": 2}
    together = es.RFM(**options).fit(X, y, X_val, y_val, sizes=sizes, val_sizes=val_sizes)
    new, target = problem(8, 12, 2, seed=20)
    outputs = together.predict(new.expand(5, -1, -1))
    scores = together.score(X_val, y_val, "mse", sizes=val_sizes)
    for b, (n, m) in enumerate(zip(sizes, val_sizes)):
        alone = es.RFM(**options).fit(X[b, :n], y[b, :n], X_val[b, :m], y_val[b, :m])
        measured = torch.stack([values[b] for values in together.validation_])
        torch.testing.assert_close(measured, torch.tensor(alone.validation_).double())
        torch.testing.assert_close(outputs[b], alone.predict(new))
        if n > 2:  # two points tell no metric from another: rounding picks the fit
            assert int(together.best_iter_[b]) == alone.best_iter_
            torch.testing.assert_close(together.direction_[b], alone.direction_)
        assert float(scores[b]) == pytest.approx(alone.score(X_val[b, :m], y_val[b, :m], "mse"))


@pytest.mark.parametrize("lockstep", [(1, 1), (2, 4), (3, 12), (1, 5)])
def test_a_grid_is_its_settings_one_by_one_and_keeps_the_best(lockstep, monkeypatch):
    X, y = (torch.stack(t) for t in zip(*(problem(40, 30, seed=s) for s in range(3))))
    held = [torch.stack(t) for t in zip(*(problem(25, 30, seed=9 + s) for s in range(3)))]
    y, held[1] = y[..., None], held[1][..., None]
    in_lockstep(monkeypatch, *lockstep)
    grid = {"bandwidth": (0.5, 2.0, 8.0), "reg": (1e-3, 0.3), "center_grads": (False, True)}
    for select in ("auc", "mse"):
        tuned = es.RFM(iters=2).fit_grid(X, y, *held, **grid, select=select)
        table = tuned.grid_.values
        assert table.shape == (12, 3, 3) and len(tuned.grid_.settings) == 12
        for s, setting in enumerate(tuned.grid_.settings):
            alone = es.RFM(iters=2, tuning_metric=select, **vars(setting)).fit(X, y, *held)
            torch.testing.assert_close(table[s], torch.stack(alone.validation_))
            for b in (tuned.grid_.chosen == s).nonzero().flatten().tolist():
                torch.testing.assert_close(tuned.direction_[b], alone.direction_[b])
                torch.testing.assert_close(tuned.predict(held[0])[b], alone.predict(held[0])[b])
                assert int(tuned.best_iter_[b]) == int(alone.best_iter_[b])
        best = table.amax(dim=1).amax(dim=0) if select == "auc" else table.amin(dim=1).amin(dim=0)
        for b in range(3):
            rows = tuned.grid_.rows(b)
            (chosen,) = [row for row in rows if row["chosen"]]
            assert chosen[select] == pytest.approx(float(best[b]))


@pytest.mark.parametrize("lockstep", [(1, 1), (2, 4)])
def test_a_setting_without_gradients_is_passed_over_and_shown(lockstep, monkeypatch):
    X, y = problem(30, 8)
    batch, labels = torch.stack([X, 1e4 * X]), y.expand(2, -1)[..., None]
    in_lockstep(monkeypatch, *lockstep)
    rfm = es.RFM(bandwidth_mode="constant", iters=2, regime="gram")
    rfm.fit_grid(batch, labels, batch, labels, bandwidth=(3.0, 3e4))  # 3 is nothing at 1e4
    failed = rfm.grid_.values.isnan().all(dim=1)
    assert failed.tolist() == [[False, True]] * 2 + [[False, False]] * 2
    assert int(rfm.grid_.chosen[1]) >= 2 and not rfm.grid_.rows(1)[0]["chosen"]
    alone = es.RFM(bandwidth_mode="constant", iters=2, regime="gram")
    alone.fit_grid(X, y, X, y, bandwidth=(3.0, 3e4))
    torch.testing.assert_close(rfm.direction_[0], alone.direction_)
    with pytest.raises(ValueError, match="vanish or overflow"):
        rfm.fit_grid(1e4 * X, y, 1e4 * X, y, bandwidth=(3.0, 5.0))


@pytest.mark.parametrize("regime", REGIMES)
def test_every_fit_advances_the_progress_bar(regime, monkeypatch):
    done = []

    class Counted(machine.Ticker):
        def __call__(self, count=1):
            done.append(count)
            super().__call__(count)

    monkeypatch.setattr(machine, "Ticker", Counted)
    X, y = problem(20, 5)
    batch = torch.stack([X, 2 * X, -X])
    es.RFM(iters=2, regime=regime).fit_grid(batch, y, batch, y, bandwidth=(1.0, 2.0))
    assert sum(done) == 3 * 4 * 3  # problems, settings, fits


def test_bad_grids_are_refused():
    X, y = problem(20, 5)
    cases = [
        ({"bandwidth": ()}, "bandwidth must be positive"),
        ({"reg": (-1.0,)}, "reg must be positive"),
        ({"center_grads": (2,)}, "center_grads must be booleans"),
        ({"select": "f1"}, "select must be one of"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            es.RFM().fit_grid(X, y, X, y, **change)
    with pytest.raises(ValueError, match="judged on them"):
        es.RFM().fit_grid(X, y, None, None)
    with pytest.raises(ValueError, match="sizes for X must be"):
        es.RFM().fit(X, y, sizes=[3, 4])
    with pytest.raises(ValueError, match="must lie between 1 and its 20 rows"):
        es.RFM().fit(X, y, sizes=[21])
