"""What the benchmarks of fits compare before they time: with double precision."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import expertsteer as es
from benchmarks import timing
from benchmarks.registry import Case, Gate, benchmark, called
from benchmarks.rfm import alone, cases

OURS = "expertsteer"
MODES = {"median": cases.MEDIAN, "constant": cases.CONSTANT}
PEERS = {
    "xrfm l2_high_dim": cases.xrfm,
    "plain torch": cases.Plain,
    "xrfm l2": lambda X, y, mode: cases.xrfm(X, y, mode, "l2"),
}


class Fit(NamedTuple):
    """Of a machine: predictions at new points ``[100, C]``, its direction ``[d]``."""

    predictions: Tensor
    direction: Tensor

    @classmethod
    def of(cls, machine: Any, new: Tensor) -> Fit:
        predictions = machine.predict(new).double().cpu()
        return cls(predictions.reshape(len(new), -1), machine.direction_.double().cpu())

    def off(self, exact: Fit) -> tuple[float, float]:
        """The largest error of a prediction, and the directions' cosine."""
        error = float((self.predictions - exact.predictions).abs().max())
        return error, abs(float(self.direction @ exact.direction))


class Allowed(NamedTuple):
    """The fit in double precision, and how far a prediction may be from it; whether the first
    eigenvalue stands alone, else any mixture of eigenvectors is one."""

    exact: Fit
    error: float
    distinct: bool


def beyond(found: Fit, allowed: Allowed) -> float:
    """The largest deviation as a multiple of what is allowed; 1e-3 is, of a cosine."""
    error, cosine = found.off(allowed.exact)
    return max(error / allowed.error, allowed.distinct * (1 - cosine) / 1e-3)


@benchmark(
    "rfm.direction",
    gate=Gate(
        "predictions and direction with double precision; allowed are 1e-4 or twice the peer's "
        "error, without a peer 1e-2, and 1e-3 of a cosine",
        1.0,
        beyond,
        "times the allowed",
    ),
    smallest={"n": 60, "d": 32, "outputs": 1, "mode": "median", "peer": "plain torch"},
)
def DIRECTION(stack, n, d, outputs, mode, peer=None) -> Case:
    """One problem, direction included. A peer's error is reported, whatever it is."""
    settings = MODES[mode]
    (X, y), (new, _) = cases.problem(n, d, outputs), cases.problem(100, d, seed=1)
    if mode == "constant":
        X, new = cases.at_distance(X), cases.at_distance(new)
    works = {OURS: lambda: cases.ours(X, y, settings)}
    if peer:
        works[peer] = lambda: PEERS[peer](X, y, settings)
    results = called(works, lambda machine: Fit.of(machine, new))
    machine = cases.ours(X.double(), y.double(), settings)
    exact, values = Fit.of(machine, new.double()), machine.directions(2).eigenvalues
    off = {name: fit.off(exact) for name, fit in results["found"].items()}
    figures = {"error": off[OURS][0], "cosine": off[OURS][1]}
    if peer:
        figures |= {"peer_error": off[peer][0], "peer_cosine": off[peer][1]}
    error = max(2 * figures["peer_error"], 1e-4) if peer else 1e-2
    allowed = Allowed(exact, error, distinct=float(values[1]) < 0.9 * float(values[0]))
    found = {OURS: results["found"][OURS]}
    beside = tuple(name for name in works if name != OURS)
    return Case(works, found, allowed, beside, figures, results["first"])


def own_seconds(n, d, outputs, mode) -> float:
    """Of our fit, as the table gives them."""
    with DIRECTION.checked(n=n, d=d, outputs=outputs, mode=mode) as case:
        return timing.seconds(case.works[OURS], 9, 2)


def angle(found: Tensor, exact: Tensor) -> float:
    """What the cosine of two unit vectors lacks of 1."""
    return 1 - float(found.double().cpu() @ exact.double().cpu())


DIRECTIONS = Gate("the direction with double precision's", 1e-3, angle, "of a cosine")


@benchmark("rfm.regimes", gate=DIRECTIONS, smallest={"n": 60, "d": 32, "regime": "feature"})
def REGIMES(stack, n, d, regime) -> Case:
    X, y = cases.problem(n, d)
    works = {regime: lambda: cases.ours(X, y, regime=regime)}
    exact = cases.ours(X.double(), y.double()).direction_
    return Case(works, expected=exact, **called(works, lambda machine: machine.direction_))


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).abs().max() / exact.abs().max())


@benchmark(
    "rfm.product",
    gate=Gate("a product with double precision's", 1e-4, relative, "of its largest entry"),
    smallest={"n": 16},
)
def PRODUCT(stack, n) -> Case:
    """What a fit's operations are to be compared with."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    works = {"torch.mm": lambda: torch.mm(a, b)}
    return Case(works, expected=a.double() @ b.double(), **called(works))


def layers_of(count: int, n: int, held: int, d: int, device: str) -> tuple[Tensor, ...]:
    """Problems of several layers, training and held-out: ``X, y, X_val, y_val``."""
    data = [cases.problem(n + held, d, seed=s) for s in range(count)]
    X, y = (torch.stack(t).to(device) for t in zip(*data))
    X = cases.at_distance(X)
    return X[:, :n], y[:, :n], X[:, n:], y[:, n:]


@benchmark(
    "rfm.grid",
    gate=DIRECTIONS,
    smallest={"layers": 2, "n": 60, "d": 32, "held": 20, "iters": 2},
)
def GRID(stack, layers, n, d, held, iters, backend="auto", device="cpu") -> Case:
    """The six points of neural_controllers on every layer; the peer on one layer."""
    split = layers_of(layers, n, held, d, device)
    settings = {"bandwidth_mode": "constant", "normalize": "max", "reg": cases.REG}
    machine = es.RFM(**settings, iters=iters, backend=backend)
    machine.fit_grid(*split, **cases.GRID)
    best = machine.grid_.settings[int(machine.grid_.chosen[0])]
    exact = es.RFM(
        **settings,
        iters=iters,
        tuning_metric="auc",
        bandwidth=best.bandwidth,
        center_grads=best.center_grads,
    ).fit(*(part[0].double() for part in split))
    found = {OURS: machine.direction_[0].clone()}
    X, y = split[0][0], split[1][0]

    def peer() -> None:
        for bandwidth in cases.GRID["bandwidth"]:
            for _ in cases.GRID["center_grads"]:
                cases.xrfm(X, y, cases.CONSTANT | {"bandwidth": bandwidth}, device=device)

    name = "xrfm, one layer"
    works = {OURS: lambda: machine.fit_grid(*split, **cases.GRID), name: peer}
    return Case(works, found, exact.direction_, (name,))


@benchmark("rfm.concepts", gate=DIRECTIONS, smallest={"batch": 3, "n": 40, "d": 32})
def CONCEPTS(stack, batch, n, d, iters=3) -> Case:
    """Many fits in one call."""
    X, y = cases.problem(n, d)
    X = X.expand(batch, n, d) + 0.1 * torch.randn(batch, n, 1)
    machine = es.RFM(iters=iters)
    exact = es.RFM(iters=iters).fit(X[0].double(), y[:, 0].double()).direction_
    works = {OURS: lambda: machine.fit(X, y[:, 0])}
    return Case(works, expected=exact, **called(works, lambda fitted: fitted.direction_[0]))


@benchmark("rfm.one_fit", gate=DIRECTIONS, smallest={"n": 60, "d": 32, "device": "cpu"})
def ONE_FIT(stack, n, d, machine="auto", device="cuda") -> Case:
    """Median bandwidth, direction included; ``machine`` is a backend of ours or ``"xrfm"``."""
    X, y = (t.to(device) for t in cases.problem(n, d))
    exact = cases.ours(X.double(), y.double()).direction_

    def direction(fitted: Any) -> Tensor:
        found = fitted.direction_.double()
        return found * (found @ exact).sign() if machine == "xrfm" else found  # its sign is free

    if machine == "xrfm":
        works = {machine: lambda: cases.xrfm(X, y, device=device)}
    else:
        works = {machine: lambda: cases.ours(X, y, backend=machine)}
    return Case(works, expected=exact, **called(works, direction))


@benchmark("rfm.streamed", gate=DIRECTIONS, smallest={"n": 300, "d": 32, "device": "cpu"})
def STREAMED(stack, n, d, iters=2, device="cuda") -> Case:
    """Compared at a size that double precision holds; the cosine with fewer rows is a figure."""
    X, y = (t.to(device) for t in cases.problem(n, d))
    machine = es.RFM(regime="streamed", iters=iters)
    few = slice(min(n, 5000))
    exact = es.RFM(iters=iters).fit(X[few].double(), y[few].double()).direction_
    found = {OURS: machine.fit(X[few], y[few]).direction_.clone()}
    whole, first = timing.once(lambda: machine.fit(X, y).direction_)
    figures = {"cosine with 5,000 rows": 1 - angle(whole, exact)}
    return Case({OURS: lambda: machine.fit(X, y)}, found, exact, (), figures, {OURS: first})


@benchmark(
    "rfm.streamed_alone",
    gate=DIRECTIONS,
    smallest={"n": 300, "d": 32, "iters": 1, "budget": 1 << 30},
)
def STREAMED_ALONE(stack, n, d, iters, budget, compared=None) -> Case:
    """In a process of its own, against double precision in the feature regime, where asked at a
    smaller size of the same problem. No work stands here: the seconds are a figure."""
    compared = compared or n
    exact = alone.exact(compared, d, iters)
    figures = alone.run(n, d, iters, budget)
    predictions, direction = (figures.pop(name) for name in ("predictions", "direction"))
    if compared != n:
        direction = alone.run(compared, d, iters, budget)["direction"]
    else:
        error = torch.tensor(predictions) - torch.tensor(exact["predictions"])
        figures["error"] = float(error.abs().max())
    direction, true = torch.tensor(direction), torch.tensor(exact["direction"])
    figures["cosine"] = 1 - angle(direction, true)
    return Case({}, {OURS: direction}, true, figures=figures)
