"""Fitting one steering direction: the n x n recurrence beside xRFM on the same data, same run.

    python -m pytest benchmarks/bench_rfm.py --benchmark-only

The direction must agree with xRFM's top eigenvector before a speed is reported.
"""

import pytest
import torch

import expertsteer as es

xrfm = pytest.importorskip("xrfm.rfm_src.recursive_feature_machine")

ITERS = 5


def problem(n, d):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator)
    return X, (X[:, 0] * X[:, 1] + X[:, 2] > 0).float()


def ours(X, y):
    rfm = es.RFM(bandwidth=10.0, bandwidth_mode="constant", normalize="max", iters=ITERS)
    return rfm.fit(X, y).direction_


def peer(X, y):
    rfm = xrfm.RFM("l2_high_dim", iters=ITERS, bandwidth=10.0, device="cpu", verbose=False)
    rfm.fit(
        (X, y[:, None]),
        (X[:2], y[:2, None]),
        reg=0.1,
        solver="cholesky",
        verbose=False,
        early_stop_rfm=False,
        return_best_params=False,
    )
    return torch.linalg.eigh(rfm.M).eigenvectors[:, -1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(500, 1024), (1000, 1024)], ids=str)
@pytest.mark.parametrize("machine", [ours, peer], ids=["expertsteer", "xrfm"])
def bench_direction(benchmark, machine, shape):
    X, y = problem(*shape)
    cosine = abs(float(ours(X, y) @ peer(X, y)))
    if cosine < 0.999:
        pytest.fail(f"the directions agree to a cosine of {cosine:.6f} only; no speed is reported")
    benchmark.group = f"one direction, n x d = {shape}, {ITERS} iterations, float32"
    benchmark.extra_info["cosine"] = cosine
    benchmark.pedantic(machine, args=(X, y), rounds=5, warmup_rounds=1)
