"""Fitting steering directions: the n x n recurrence beside its peers, same data, same run.

    python -m pytest benchmarks/rfm/bench_fits.py --benchmark-only    # small sizes
    python -m benchmarks.rfm.table                               # the committed tables

Each benchmark first checks predictions and direction, and reports no speed when they are wrong.
"""

import pytest
import torch

from benchmarks.rfm import cases

pytest.importorskip("xrfm")
MACHINES = {
    "expertsteer": cases.ours,
    "xrfm l2_high_dim": cases.xrfm,
    "plain torch": cases.Plain,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("shape", [(250, 1024), (500, 1024), (500, 2048)], ids=str)
@pytest.mark.parametrize("mode", [cases.MEDIAN, cases.CONSTANT], ids=["median", "constant"])
@pytest.mark.parametrize("machine", MACHINES)
def bench_direction(benchmark, machine, mode, shape, outputs):
    X, y = cases.problem(*shape, outputs)
    if mode is cases.CONSTANT:
        X = cases.at_distance(X)
    peer = cases.xrfm if machine == "expertsteer" else MACHINES[machine]
    benchmark.extra_info |= cases.gate(X, y, peer(X, y, mode), mode)
    benchmark.group = f"{shape}, {outputs} outputs, {mode['bandwidth_mode']} bandwidth"
    benchmark.pedantic(MACHINES[machine], args=(X, y, mode), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("regime", ["gram", "feature", "streamed"])
@pytest.mark.parametrize("n", [256, 512, 1024, 2048])
def bench_regimes(benchmark, regime, n):
    """Where the cost model should change its mind: around n = 1.5 d = 768."""
    X, y = cases.problem(n, 512)
    exact = cases.ours(X.double(), y.double()).direction_
    cosine = float(cases.ours(X, y, regime=regime).direction_.double() @ exact)
    if cosine < 0.999:
        pytest.fail(f"the direction agrees to {cosine:.6f} only; no speed is reported")
    benchmark.group = f"regimes, {n} points in 512 dimensions"
    benchmark.pedantic(
        cases.ours, args=(X, y), kwargs={"regime": regime}, rounds=5, warmup_rounds=1
    )


@pytest.mark.parametrize("n", [500, 1000])
def bench_plain_product(benchmark, n):
    """What a fit's operations are to be compared with."""
    a = torch.randn(n, n)
    benchmark.group = "plain matrix product"
    benchmark.pedantic(torch.mm, args=(a, a), rounds=5, warmup_rounds=1)
