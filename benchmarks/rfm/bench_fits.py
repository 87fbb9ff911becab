"""Fitting steering directions: the n x n recurrence beside its peers, same data, same run.

python -m pytest benchmarks/rfm -m "not gpu" --benchmark-only    # small sizes
python -m benchmarks.rfm.table                                   # the committed tables
"""

import pytest

from benchmarks.rfm.gates import DIRECTION, OURS, PRODUCT, REGIMES

XRFM = "xrfm l2_high_dim"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("shape", [(250, 1024), (500, 1024), (500, 2048)], ids=str)
@pytest.mark.parametrize("mode", ["median", "constant"])
@pytest.mark.parametrize("machine", [OURS, XRFM, "plain torch"])
def bench_direction(benchmark, machine, mode, shape, outputs):
    pytest.importorskip("xrfm")
    size = {"n": shape[0], "d": shape[1], "outputs": outputs, "mode": mode}
    size["peer"] = XRFM if machine == OURS else machine
    DIRECTION.time(benchmark, machine, f"{shape}, {outputs} outputs, {mode} bandwidth", size)


@pytest.mark.parametrize("regime", ["gram", "feature", "streamed"])
@pytest.mark.parametrize("n", [256, 512, 1024, 2048])
def bench_regimes(benchmark, regime, n):
    """Where the cost model should change its mind: around n = 1.5 d = 768."""
    group = f"regimes, {n} points in 512 dimensions"
    REGIMES.time(benchmark, regime, group, {"n": n, "d": 512, "regime": regime})


@pytest.mark.parametrize("n", [500, 1000])
def bench_plain_product(benchmark, n):
    PRODUCT.time(benchmark, "torch.mm", "plain matrix product", {"n": n})
