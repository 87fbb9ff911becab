"""The Triton kernels of the Recursive Feature Machine against what the device can do.

    python -m pytest benchmarks/rfm/bench_kernels_gpu.py --benchmark-only

The Laplace kernel moves memory: its rate is given as a share of a measured device-to-device copy.
The AGOP multiplies matrices: its rate is given as a share of a measured float32 torch.matmul with
tf32 off. Every configuration is timed, beside torch.cdist and kermac for the Laplace kernel alone.
"""

import pytest
import torch

from benchmarks import timing
from benchmarks.rfm import gates_gpu as gates

pytest.importorskip("triton")

from expertsteer.ops.rfm import triton_agop, triton_laplace  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPES = [(1, 512), (64, 512), (1, 1024), (16, 1024), (1, 4096), (4, 4096)]  # problems, points
CALLS = 10  # between two synchronisations


def timed(benchmark, registered, work, what, size):
    """Median seconds of one call."""
    group = f"{what}, problems x points = {size['shape']}"
    registered.time(benchmark, work, group, size, calls=CALLS, rounds=10, warmup_rounds=2)
    benchmark.extra_info |= {"device": torch.cuda.get_device_name(), "calls a round": CALLS}
    return benchmark.stats.stats.median / CALLS


def matmul_rate(batch, n):
    """Float32 operations a second of torch.matmul at this size."""
    kept, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        a = torch.randn(batch, n, n, device="cuda")
        return 2 * batch * n**3 / timing.device_seconds(lambda: a @ a)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept


@pytest.mark.parametrize("tile", triton_laplace.GRAM_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_laplace(benchmark, shape, tile):
    size = {"shape": shape, "tile": tile}
    taken = timed(benchmark, gates.LAPLACE, "laplace", "K and W from P", size)
    batch, n = shape
    moved = 4 * batch * (n * (n + 1) // 2 + 2 * n * n)  # the upper triangle read, K and W written
    benchmark.extra_info["share of copy rate"] = moved / taken / timing.copy_rate()


@pytest.mark.parametrize("peer", gates.PEERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_laplace_peers(benchmark, shape, peer):
    if peer == "kermac":
        pytest.importorskip("kermac")
    what = f"K from points of width {gates.WIDTH}"
    timed(benchmark, gates.LAPLACE_PEERS, peer, what, {"shape": shape, "peer": peer})


@pytest.mark.parametrize("tile", triton_agop.ROW_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_gradient_rows(benchmark, shape, tile):
    batch, n = shape
    size = {"shape": shape, "tile": tile}
    share_of_matmul(benchmark, gates.GRADIENT_ROWS, "rows", "T P", size, 2 * batch * n**3)


@pytest.mark.parametrize("tile", triton_agop.PRODUCT_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_symmetric_product(benchmark, shape, tile):
    batch, n = shape
    size, operations = {"shape": shape, "tile": tile}, batch * n * n * (n + 1)
    what = "(T P)^T (T P)"
    share_of_matmul(benchmark, gates.SYMMETRIC_PRODUCT, "product", what, size, operations)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_agop(benchmark, shape):
    batch, n = shape
    operations = 3 * batch * n**3
    share_of_matmul(benchmark, gates.AGOP, "agop", "one AGOP step", {"shape": shape}, operations)


def share_of_matmul(benchmark, registered, work, what, size, operations):
    rate = operations / timed(benchmark, registered, work, what, size)
    benchmark.extra_info["share of matmul rate"] = rate / matmul_rate(*size["shape"])
