"""Mutual information of all layer pairs: beside per-pair loops, on the same work, in the same run.

python -m pytest benchmarks/pairing --benchmark-only     # each part
python -m benchmarks.pairing.table                       # the committed tables
"""

import pytest
import torch

from benchmarks import timing
from benchmarks.pairing.gates import (
    GAUSSIAN_PAIRS,
    KSG,
    KSG_BACKEND,
    OURS,
    PROJECTION,
)

SIZE = {"layers": 32, "n": 1000, "d": 4096}
PAIRS, N = "32 x 32 pairs", SIZE["n"]
SAMPLE = 8  # pairs of the k-d tree


@pytest.mark.parametrize("how", [OURS, "loop"])
def bench_gaussian_pairs(benchmark, how):
    GAUSSIAN_PAIRS.time(benchmark, how, f"gaussian, {PAIRS} after projection, n {N}, r 32", SIZE)


@pytest.mark.parametrize("how", [OURS, "PCA"])
def bench_projection(benchmark, how):
    group = f"projection of 2 x 4 layers, n {N}, d 4096, r 32, both halves"
    PROJECTION.time(benchmark, how, group, SIZE | {"layers": 4})


@pytest.mark.parametrize("r", [4, 8])
@pytest.mark.parametrize("how", [OURS, "k-d tree"])
def bench_ksg(benchmark, how, r):
    group = f"ksg, n {N}, r {r}: {PAIRS} ({SAMPLE} by k-d tree)"
    KSG.time(benchmark, how, group, SIZE | {"r": r, "sample": SAMPLE})


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1000, 5000])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def bench_ksg_on_a_gpu(benchmark, backend, n):
    layers = SIZE["layers"]
    # The distances are written and read once, the counts written once and read once.
    moved = 2 * 4 * 2 * layers * n * n + 2 * 2 * 4 * layers**2 * n
    group, size = f"ksg on a GPU, {PAIRS}, n {n}, r 8", {"layers": layers, "n": n}
    _on_the_gpu(benchmark, KSG_BACKEND, backend, group, size | {"backend": backend}, moved)


@pytest.mark.gpu
def bench_gaussian_pairs_on_a_gpu(benchmark):
    layers = SIZE["layers"]
    moved = 2 * 8 * layers * N * 32 + 2 * 2 * 4 * layers**2 * 32 * 32
    group = f"gaussian on a GPU, {PAIRS} after projection, n {N}, r 32"
    _on_the_gpu(benchmark, GAUSSIAN_PAIRS, OURS, group, SIZE | {"device": "cuda"}, moved)


def _on_the_gpu(benchmark, registered, work, group, size, moved):
    """Also the share of the device's bandwidth that is reached."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    registered.time(benchmark, work, group, size, rounds=10, warmup_rounds=3, calls=1)
    share = moved / benchmark.stats.stats.median / timing.copy_rate()
    device = torch.cuda.get_device_name()
    benchmark.extra_info |= {"device": device, "share_of_copy_bandwidth": share}
