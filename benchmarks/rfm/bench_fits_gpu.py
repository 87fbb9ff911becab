"""Whole fits on a GPU: the grid over 32 layers, xRFM on the same device, and a streamed problem.

python -m pytest benchmarks/rfm/bench_fits_gpu.py --benchmark-only
"""

import pytest
import torch

from benchmarks.rfm.gates import GRID, ONE_FIT, OURS, STREAMED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LAYERS, N, D = 32, 1024, 4096


@pytest.mark.parametrize("backend", ["auto", "triton"])
def bench_grid(benchmark, backend):
    group = f"grid of six on {LAYERS} layers, n={N}, d={D}"
    size = {"layers": LAYERS, "n": N, "d": D, "held": 200, "iters": 3, "backend": backend}
    GRID.time(benchmark, OURS, group, size | {"device": "cuda"}, calls=1)


@pytest.mark.parametrize("machine", ["auto", "triton", "xrfm"])
def bench_one_fit(benchmark, machine):
    if machine == "xrfm":
        pytest.importorskip("xrfm")
    size = {"n": N, "d": D, "machine": machine}
    ONE_FIT.time(benchmark, machine, f"one direction, n={N}, d={D}", size, calls=1)


def bench_streamed(benchmark):
    n = 50_000
    group, size = f"streamed, n={n}, d={D}, 2 iterations", {"n": n, "d": D}
    STREAMED.time(benchmark, OURS, group, size, calls=1, rounds=1, warmup_rounds=0)
