"""The Triton kernels of the Recursive Feature Machine against what the device can do.

    python -m pytest benchmarks/rfm/bench_kernels_gpu.py --benchmark-only

The Laplace kernel moves memory: its rate is given as a share of a measured device-to-device copy.
The AGOP multiplies matrices: its rate is given as a share of a measured float32 torch.matmul with
tf32 off. Every configuration is timed, beside torch.cdist and kermac for the Laplace kernel alone.
Each result is first compared with float64 torch, and no speed is reported when it is off.
"""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from expertsteer.ops.rfm import triton_agop, triton_laplace  # noqa: E402

pytestmark = pytest.mark.gpu

SHAPES = [(1, 512), (64, 512), (1, 1024), (16, 1024), (1, 4096), (4, 4096)]  # problems, points
WIDTH, ROUNDS, CALLS = 256, 10, 10
# Tensor cores truncate as they add, 4096 terms of one sign to some 3e-5.
SUMS = 1e-4


def timed(benchmark, call):
    """Median seconds of one call; a round is several calls between two synchronisations."""

    def run():
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()

    torch.cuda.synchronize()
    benchmark.extra_info |= {"device": torch.cuda.get_device_name(), "calls a round": CALLS}
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=2)
    return benchmark.stats.stats.median / CALLS


def seconds(call):
    """Median seconds of one call, by the device's clock: the peak that a share refers to."""
    times = []
    for _ in range(ROUNDS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000 / CALLS)
    return float(torch.tensor(times[2:]).median())


def copy_rate():
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def matmul_rate(batch, n):
    """Float32 operations a second of torch.matmul at this size."""
    kept, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        a = torch.randn(batch, n, n, device="cuda")
        return 2 * batch * n**3 / seconds(lambda: a @ a)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept


def problem(batch, n):
    torch.manual_seed(0)
    points = torch.randn(batch, n, WIDTH, device="cuda")
    points -= points.mean(dim=1, keepdim=True)
    bandwidth = torch.full((batch,), 3.0 * (2 * WIDTH) ** 0.5, device="cuda")
    return points, points @ points.mT, bandwidth


def two_sets(batch, n):
    points, _, bandwidth = problem(batch, n)
    return torch.randn_like(points), points, bandwidth


def exact_laplace(left, right, bandwidth):
    distance = torch.cdist(
        left.double(), right.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    length = bandwidth.double().view(-1, 1, 1)
    kernel = torch.exp(-distance / length)
    return kernel, torch.where(distance > 0, kernel / (length * distance), 0.0)


def require_near(got, expected, tolerance):
    torch.cuda.synchronize()
    error = float((got.double() - expected).abs().max() / expected.abs().max())
    if not error <= tolerance:
        pytest.fail(f"off by {error:.1e} of the largest entry, more than {tolerance:.0e}; no speed")
    return error


@pytest.mark.parametrize("tile", triton_laplace.GRAM_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_laplace(benchmark, shape, tile):
    batch, n = shape
    points, gram, bandwidth = problem(*shape)

    def call():
        return triton_laplace.laplace(gram, bandwidth, config=tile)

    benchmark.extra_info["error"] = max(
        require_near(got, expected, 1e-5)
        for got, expected in zip(call(), exact_laplace(points, points, bandwidth))
    )
    benchmark.group = f"K and W from P, problems x points = {shape}"
    moved = 4 * batch * (n * (n + 1) // 2 + 2 * n * n)  # the upper triangle read, K and W written
    benchmark.extra_info["share of copy rate"] = moved / timed(benchmark, call) / copy_rate()


def cdist_kernel(points, bandwidth):
    return torch.exp(-torch.cdist(points, points) / bandwidth.view(-1, 1, 1))


def kermac_kernel(left, right, bandwidth):
    kermac = pytest.importorskip("kermac")
    return torch.exp(-kermac.cdist(left, right, p=2.0) / bandwidth.view(-1, 1, 1))


@pytest.mark.parametrize("peer", [cdist_kernel, kermac_kernel], ids=["cdist + exp", "kermac"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_laplace_peers(benchmark, shape, peer):
    """K alone: the peers give no W."""
    points, _, bandwidth = problem(*shape)
    expected, _ = exact_laplace(points, bandwidth)
    # cdist leaves sqrt(rounding) on its diagonal.
    error = require_near(peer(points, bandwidth), expected, 1e-3)
    benchmark.extra_info["error"] = error
    benchmark.group = f"K from points of width {WIDTH}, problems x points = {shape}"
    timed(benchmark, lambda: peer(points, bandwidth))


def agop_problem(batch, n):
    points, gram, bandwidth = problem(batch, n)
    weights = exact_laplace(points, points, bandwidth)[1].float()
    return gram, weights, torch.randn(batch, n, 1, device="cuda")


def exact_rows(gram, weights, alpha):
    gram, weights, alpha = gram.double(), weights.double(), alpha.double()
    return (weights @ alpha) * gram - weights @ (alpha * gram)


def share_of_matmul(benchmark, call, operations, batch, n):
    benchmark.extra_info["share of matmul rate"] = (
        operations / timed(benchmark, call) / matmul_rate(batch, n)
    )


@pytest.mark.parametrize("tile", triton_agop.ROW_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_gradient_rows(benchmark, shape, tile):
    batch, n = shape
    gram, weights, alpha = agop_problem(*shape)

    def call():
        return triton_agop.rows_and_sums(weights, alpha, gram, config=tile)[0]

    expected = exact_rows(gram, weights, alpha)
    benchmark.extra_info["error"] = require_near(call()[:, 0], expected, SUMS)
    benchmark.group = f"T P, problems x points = {shape}"
    share_of_matmul(benchmark, call, 2 * batch * n**3, batch, n)


@pytest.mark.parametrize("tile", triton_agop.PRODUCT_TILES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_symmetric_product(benchmark, shape, tile):
    batch, n = shape
    rows = exact_rows(*agop_problem(*shape)).float()

    def call():
        return triton_agop.symmetric_product(rows, config=tile)

    expected = rows.double().mT @ rows.double()
    benchmark.extra_info["error"] = require_near(call(), expected, SUMS)
    benchmark.group = f"(T P)^T (T P), problems x points = {shape}"
    share_of_matmul(benchmark, call, batch * n * n * (n + 1), batch, n)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_agop(benchmark, shape):
    """The whole step in the tiles it chooses: 3 n^3 operations."""
    batch, n = shape
    arguments = agop_problem(*shape)
    rows = exact_rows(*arguments)

    def call():
        return triton_agop.agop(*arguments)[0]

    benchmark.extra_info["error"] = require_near(call(), rows.mT @ rows, SUMS)
    benchmark.group = f"one AGOP step, problems x points = {shape}"
    share_of_matmul(benchmark, call, 3 * batch * n**3, batch, n)
