"""Mutual information of all layer pairs: beside per-pair loops, on the same work, in the same run.

    python -m pytest benchmarks/pairing/bench_information.py --benchmark-only     # each part
    python -m benchmarks.pairing.table                                # the committed tables

Each benchmark first checks its values and reports no speed when they are wrong.
"""

from functools import cache

import pytest
import torch

from benchmarks.pairing import cases
from expertsteer import ops
from expertsteer.ops.information import reference

LAYERS, N, D = 32, 1000, 4096
SAMPLE = 8  # pairs of the k-d tree loop; all 1,024 would take minutes a round


@cache
def states():
    return cases.states(LAYERS, N, D)


@cache
def codes():
    return [cases.project(side) for side in states()]


def require(right, what):
    if not right:
        pytest.fail(f"{what}; no speed is reported")


@pytest.mark.parametrize("how", [cases.pairs, cases.pairs_slogdet], ids=["expertsteer", "loop"])
def bench_gaussian_pairs(benchmark, how):
    error = (cases.pairs(*codes()) - cases.pairs_slogdet(*codes())).abs().max()
    require(float(error) < 1e-3, f"the estimates differ by {float(error):.2g} nats")
    benchmark.group = f"gaussian, {LAYERS} x {LAYERS} pairs after projection, n {N}, r 32"
    benchmark.pedantic(how, args=codes(), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("how", [cases.project, cases.project_sklearn], ids=["expertsteer", "pca"])
def bench_projection(benchmark, how):
    x = states()[0][:4]
    own = cases.pairs(cases.project(x), [c[:4] for c in codes()[1]])
    peer = cases.pairs(cases.project_sklearn(x), [c[:4] for c in codes()[1]])
    lost = float((peer - own).max() / peer.mean())
    require(lost < 0.03, f"the projection loses {lost:.1%} of the information")
    benchmark.group = f"projection of 4 layers, n {N}, d {D}, r 32, both halves"
    benchmark.pedantic(how, args=(x,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("r", [4, 8])
@pytest.mark.parametrize("how", ["expertsteer", "k-d tree"])
def bench_ksg(benchmark, how, r):
    x, y = (cases.ksg_codes(side, r) for side in states())
    found = ops.ksg_information(x, y)
    trees = torch.tensor([cases.ksg_tree(x[i], y[-i]) for i in range(SAMPLE)])
    error = max(abs(float(found[i, -i]) - float(trees[i])) for i in range(SAMPLE))
    require(error < 1e-6, f"the estimates differ by {error:.2g} nats")
    benchmark.group = f"ksg, n {N}, r {r}: {LAYERS * LAYERS} pairs ({SAMPLE} by k-d tree)"
    if how == "expertsteer":
        benchmark.pedantic(ops.ksg_information, args=(x, y), rounds=5, warmup_rounds=1)
    else:
        loop = lambda: [cases.ksg_tree(x[i], y[-i]) for i in range(SAMPLE)]  # noqa: E731
        benchmark.pedantic(loop, rounds=5, warmup_rounds=1)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1000, 5000])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def bench_ksg_on_a_gpu(benchmark, backend, n):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, y = (c.cuda() for c in cases.planted_codes(n, 8, 2.0, LAYERS))
    few = [reference.max_norm_distances(c[:2], range(64)) for c in (x, y)]
    both = [ops.ksg_counts(*few, 3, backend=name) for name in (backend, "reference")]
    require(all(map(torch.equal, *both)), "the counts differ from the reference")
    benchmark.group = f"ksg on a GPU, {LAYERS} x {LAYERS} pairs, n {n}, r 8"
    # The distances are written and read once, the counts written once and read once.
    moved = 2 * 4 * 2 * LAYERS * n * n + 2 * 2 * 4 * LAYERS**2 * n
    _on_the_gpu(benchmark, lambda: ops.ksg_information(x, y, backend=backend), moved)


@pytest.mark.gpu
def bench_gaussian_pairs_on_a_gpu(benchmark):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_cpu = codes()
    x, y = ([half.cuda() for half in side] for side in on_cpu)
    error = float((cases.pairs(x, y).cpu() - cases.pairs(*on_cpu)).abs().max())
    require(error < 1e-3, f"the estimates differ by {error:.2g} nats")
    benchmark.group = f"gaussian on a GPU, {LAYERS} x {LAYERS} pairs after projection, n {N}, r 32"
    moved = 2 * 8 * LAYERS * N * 32 + 2 * 2 * 4 * LAYERS**2 * 32 * 32
    _on_the_gpu(benchmark, lambda: cases.pairs(x, y), moved)


def _on_the_gpu(benchmark, work, moved):
    """Time with the device at rest before and after, and the share of its bandwidth reached."""

    def call():
        work()
        torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=10, warmup_rounds=3)
    device = torch.cuda.get_device_properties(0)
    source = torch.empty(2**28, device="cuda")  # 1 GiB copied: the rate this device reaches
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    source.clone()
    start.record()
    for _ in range(5):
        source.clone()
    stop.record()
    torch.cuda.synchronize()
    rate = 5 * 2 * source.nbytes / (start.elapsed_time(stop) / 1e3)
    share = moved / benchmark.stats.stats.median / rate
    benchmark.extra_info |= {"device": device.name, "share_of_copy_bandwidth": share}
