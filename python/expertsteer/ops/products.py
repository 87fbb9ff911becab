"""Dense linear algebra on a CPU, each piece by the library that does it fastest.

Single precision goes to oneDNN where the processor has AVX-512: the BLAS libraries in torch's and
scipy's wheels keep to AVX2 on processors they were not tuned for, which halves their rate (220
against 400 GFLOP/s on two Zen 5 cores). Double precision, other processors, and processes that let
torch round its products (``torch.set_float32_matmul_precision``) stay with scipy's BLAS. Symmetric
products are computed by halves either way.

Either way, too, everything runs on the threads of one library: a pool that has just worked keeps
its threads spinning for milliseconds, and a second pool on the same cores waits for them.
"""

from __future__ import annotations

import torch
from scipy.linalg import blas, lapack
from torch import Tensor

PANEL = 200  # rows below which a panel of a symmetric product is not worth cutting off
PANELS = 4
GRAM_PANEL = 128  # columns: whole registers


def onednn_serves(dtype: torch.dtype) -> bool:
    """Whether oneDNN is the faster library for products of this type, at full precision."""
    return (
        dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.get_float32_matmul_precision() == "highest"
    )


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of contiguous ``[m, k]`` and ``[n, k]``."""
    if onednn_serves(a.dtype):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    out = a.new_empty(len(a), len(b))
    # Row-major matrices are their own transposes to the column-major routines: nothing is copied.
    gemm = blas.sgemm if a.dtype == torch.float32 else blas.dgemm
    gemm(1.0, b.numpy().T, a.numpy().T, trans_a=1, c=out.numpy().T, overwrite_c=1)
    return out


def times_rows(a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` of ``[m, k]`` and ``[n, k]`` in any layout, on any device.

    For products with few rows on one side: there oneDNN is twice to three times as fast as torch's
    BLAS, and reads ``b`` as well along its columns (``b = c.mT``) as along its rows.
    """
    if a.device.type != "cpu" or not onednn_serves(a.dtype):
        return a @ b.mT
    if not b.mT.is_contiguous():
        b = b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, None, "none", [], "")


def gram(a: Tensor) -> Tensor:
    """``a a^T`` of ``[n, k]`` in any layout, on any device."""
    if a.device.type != "cpu" or not onednn_serves(a.dtype):
        return a @ a.mT
    n = len(a)
    out = a.new_empty(n, n)
    for first in range(0, n, GRAM_PANEL):
        stop = min(n, first + GRAM_PANEL)
        out[first:, first:stop] = times_rows(a[first:], a[first:stop])
        out[first:stop, stop:] = out[stop:, first:stop].mT
    return out


def symmetric_lower(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The lower triangle of ``a b^T``, known to be symmetric, of contiguous ``[n, k]``.

    What lies above the diagonal of ``out`` is undefined afterwards.
    """
    if a is b and not onednn_serves(a.dtype):
        # The upper triangle of the transpose is the lower one here.
        syrk = blas.ssyrk if a.dtype == torch.float32 else blas.dsyrk
        syrk(1.0, a.numpy().T, c=out.numpy().T, trans=1, lower=0, overwrite_c=1)
        return
    n = len(a)
    panels = max(1, min(PANELS, n // PANEL))
    for p in range(panels):
        first, stop = p * n // panels, (p + 1) * n // panels
        out[first:stop, :stop] = times_transposed(a[first:stop], b[:stop])


def cholesky_solve(matrix: Tensor, y: Tensor) -> tuple[Tensor, bool]:
    """``A^-1 y`` for the lower triangle of ``A [n, n]``, and whether A is positive definite.

    Factorised in place: ``matrix`` is lost.
    """
    if onednn_serves(matrix.dtype):
        factor, info = matrix.T, matrix.new_empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(factor, upper=True, out=(factor, info))
        if int(info) != 0:
            return torch.full_like(y, float("nan")), False
        half = torch.linalg.solve_triangular(factor.T, y, upper=False)
        return torch.linalg.solve_triangular(factor, half, upper=True), True
    single = matrix.dtype == torch.float32
    factorise = lapack.spotrf if single else lapack.dpotrf
    substitute = lapack.spotrs if single else lapack.dpotrs
    factor, info = factorise(matrix.numpy().T, lower=0, clean=0, overwrite_a=1)
    solution, _ = substitute(factor, y.numpy(), lower=0)
    return torch.from_numpy(solution), info == 0
