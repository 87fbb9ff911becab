"""What the benchmarks of the Triton kernels compare before they time: with float64 torch.

Without a GPU the reference stands in for a kernel, so that the gates themselves can be tested.
"""

from __future__ import annotations

import torch

from benchmarks.registry import Case, Gate, benchmark, called
from expertsteer import ops

WIDTH = 256
# Tensor cores truncate as they add, 4096 terms of one sign to some 3e-5.
SUMS = 1e-4
SMALLEST = {"shape": (2, 24), "device": "cpu"}


def relative(found, expected) -> float:
    """Of the largest entry; the largest of several."""
    errors = [(f.double().cpu() - e.cpu()).abs().max() / e.abs().max().cpu()
              for f, e in zip(found, expected)]  # fmt: skip
    return float(max(errors))


def gate(what: str, bound: float) -> Gate:
    return Gate(f"{what} with float64 torch", bound, relative, "of the largest entry")


def problem(batch, n, device):
    torch.manual_seed(0)
    points = torch.randn(batch, n, WIDTH, device=device)
    points -= points.mean(dim=1, keepdim=True)
    bandwidth = torch.full((batch,), 3.0 * (2 * WIDTH) ** 0.5, device=device)
    return points, points @ points.mT, bandwidth


def exact_laplace(points, bandwidth):
    distance = torch.cdist(
        points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    length = bandwidth.double().view(-1, 1, 1)
    kernel = torch.exp(-distance / length)
    return kernel, torch.where(distance > 0, kernel / (length * distance), 0.0)


@benchmark("rfm.laplace", gate=gate("K and W from P", 1e-5), smallest=SMALLEST)
def LAPLACE(stack, shape, tile=None, device="cuda") -> Case:
    points, gram, bandwidth = problem(*shape, device)
    if device == "cpu":
        works = {"laplace": lambda: ops.laplace(gram, bandwidth, backend="reference")}
    else:
        from expertsteer.ops.rfm import triton_laplace

        works = {"laplace": lambda: triton_laplace.laplace(gram, bandwidth, config=tile)}
    return Case(works, expected=exact_laplace(points, bandwidth), **called(works))


def cdist_kernel(points, bandwidth):
    return torch.exp(-torch.cdist(points, points) / bandwidth.view(-1, 1, 1))


def kermac_kernel(points, bandwidth):
    import kermac

    return torch.exp(-kermac.cdist(points, points, p=2.0) / bandwidth.view(-1, 1, 1))


PEERS = {"cdist + exp": cdist_kernel, "kermac": kermac_kernel}


# cdist leaves sqrt(rounding) on its diagonal.
@benchmark("rfm.laplace_peers", gate=gate("K from points", 1e-3), smallest=SMALLEST)
def LAPLACE_PEERS(stack, shape, peer="cdist + exp", device="cuda") -> Case:
    """K alone: the peers give no W."""
    points, _, bandwidth = problem(*shape, device)
    works = {peer: lambda: PEERS[peer](points, bandwidth)}
    expected = exact_laplace(points, bandwidth)[:1]
    return Case(works, expected=expected, **called(works, lambda kernel: (kernel,)))


def agop_problem(batch, n, device):
    points, gram, bandwidth = problem(batch, n, device)
    weights = exact_laplace(points, bandwidth)[1].float()
    return gram, weights, torch.randn(batch, n, 1, device=device)


def exact_rows(gram, weights, alpha):
    gram, weights, alpha = gram.double(), weights.double(), alpha.double()
    return (weights @ alpha) * gram - weights @ (alpha * gram)


def rows(gram, weights, alpha, device, tile=None):
    if device == "cpu":
        return exact_rows(gram, weights, alpha).float()
    from expertsteer.ops.rfm import triton_agop

    return triton_agop.rows_and_sums(weights, alpha, gram, config=tile)[0][:, 0]


@benchmark("rfm.gradient_rows", gate=gate("T P", SUMS), smallest=SMALLEST)
def GRADIENT_ROWS(stack, shape, tile=None, device="cuda") -> Case:
    arguments = agop_problem(*shape, device)
    works = {"rows": lambda: rows(*arguments, device, tile)}
    expected = (exact_rows(*arguments),)
    return Case(works, expected=expected, **called(works, lambda found: (found,)))


@benchmark("rfm.symmetric_product", gate=gate("(T P)^T (T P)", SUMS), smallest=SMALLEST)
def SYMMETRIC_PRODUCT(stack, shape, tile=None, device="cuda") -> Case:
    given = exact_rows(*agop_problem(*shape, device)).float()

    def product():
        if device == "cpu":
            return given.mT @ given
        from expertsteer.ops.rfm import triton_agop

        return triton_agop.symmetric_product(given, config=tile)

    works = {"product": product}
    expected = (given.double().mT @ given.double(),)
    return Case(works, expected=expected, **called(works, lambda found: (found,)))


@benchmark("rfm.agop", gate=gate("one AGOP step", SUMS), smallest=SMALLEST)
def AGOP(stack, shape, device="cuda") -> Case:
    """The whole step in the tiles it chooses: 3 n^3 operations."""
    arguments = agop_problem(*shape, device)

    def agop():
        if device == "cpu":
            return ops.agop(*arguments, backend="reference")[0]
        from expertsteer.ops.rfm import triton_agop

        return triton_agop.agop(*arguments)[0]

    exact = exact_rows(*arguments)
    works = {"agop": agop}
    return Case(works, expected=(exact.mT @ exact,), **called(works, lambda found: (found,)))
