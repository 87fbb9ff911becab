"""Whole fits on a GPU: the grid over 32 layers, xRFM on the same device, and a streamed problem.

    python -m pytest benchmarks/rfm/bench_fits_gpu.py --benchmark-only

Directions are first compared with double precision, and no speed is reported when they are off.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

import expertsteer as es  # noqa: E402
from benchmarks.rfm import cases  # noqa: E402

pytestmark = pytest.mark.gpu

LAYERS, N, D = 32, 1024, 4096
GRID = {"bandwidth": (1.0, 10.0, 100.0), "center_grads": (False, True)}
BACKENDS = ["auto", "triton"]


def synchronised(work):
    def run():
        work()
        torch.cuda.synchronize()

    return run


def require_direction(found, exact):
    cosine = float(found.double() @ exact.double())
    if cosine < 0.999:
        pytest.fail(f"the direction agrees to {cosine:.6f} only; no speed is reported")
    return cosine


def layers():
    data = [cases.problem(N + 200, D, seed=s) for s in range(LAYERS)]
    X, y = (torch.stack(t).cuda() for t in zip(*data))
    X = cases.at_distance(X)
    return X[:, :N], y[:, :N], X[:, N:], y[:, N:]


@pytest.mark.parametrize("backend", BACKENDS)
def bench_grid(benchmark, backend):
    """The six points of neural_controllers on every layer."""
    data = layers()
    machine = es.RFM(bandwidth_mode="constant", normalize="max", reg=cases.REG, backend=backend)
    machine.fit_grid(*data, **GRID)
    setting = machine.grid_.settings[int(machine.grid_.chosen[0])]
    first = [t[0].double() for t in data]
    exact = es.RFM(
        bandwidth_mode="constant",
        normalize="max",
        reg=cases.REG,
        tuning_metric="auc",
        bandwidth=setting.bandwidth,
        center_grads=setting.center_grads,
    ).fit(*first)
    benchmark.extra_info["cosine"] = require_direction(machine.direction_[0], exact.direction_)
    benchmark.group = f"grid of six on {LAYERS} layers, n={N}, d={D}"
    run = synchronised(lambda: machine.fit_grid(*data, **GRID))
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("machine", ["auto", "triton", "xrfm"])
def bench_one_fit(benchmark, machine):
    """One layer, median bandwidth, direction included."""
    X, y = (t.cuda() for t in cases.problem(N, D))
    exact = cases.ours(X.double(), y.double()).direction_
    if machine == "xrfm":
        pytest.importorskip("xrfm")
        work = lambda: cases.xrfm(X, y, device="cuda")  # noqa: E731
    else:
        work = lambda: cases.ours(X, y, backend=machine)  # noqa: E731
    found = work().direction_
    benchmark.extra_info["cosine"] = require_direction(
        found * (found @ exact.float()).sign(), exact
    )
    benchmark.group = f"one direction, n={N}, d={D}"
    benchmark.pedantic(synchronised(work), rounds=5, warmup_rounds=1)


def bench_streamed(benchmark):
    n = 50_000
    X, y = (t.cuda() for t in cases.problem(n, D))
    machine = es.RFM(regime="streamed", iters=2)
    machine.fit(X, y)
    smaller = es.RFM(iters=2).fit(X[:5000], y[:5000]).direction_
    benchmark.extra_info["cosine with 5,000 rows"] = float(machine.direction_ @ smaller)
    benchmark.group = f"streamed, n={n}, d={D}, 2 iterations"
    benchmark.pedantic(synchronised(lambda: machine.fit(X, y)), rounds=1)
