"""Fused AGOP: the gradient rows ``T P`` with T built on the fly, and their symmetric product.

``T_c P = (W alpha_c) o P - W (alpha_c o P)`` is one matrix product whose right factor is scaled as
it is loaded; ``sum_c (T_c P)^T (T_c P)`` is computed on upper tiles only and written with its
mirror image. Dots run in ``tf32x3`` (single precision out of three tensor-core passes) on devices
that have it and in ``ieee`` elsewhere, never in plain tf32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# One tile size that compiles without spills for every architecture checked (tests/test_triton.py).
BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32
WARPS, STAGES = 8, 2


@triton.jit
def gradient_rows_kernel(
    weights,  # [B, n, n] fp32
    alpha,  # [B, n, C] fp32
    row_sums,  # [B, n, C] fp32: W alpha
    right,  # [B, n, m] fp32
    rows_out,  # [B, C, n, m] fp32, written
    n,
    m,
    outputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    problem = (tl.program_id(2) // outputs).to(tl.int64)
    output = tl.program_id(2) % outputs
    i = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    weights += problem * n * n
    right += problem * n * m
    per_output = problem * n * outputs + output
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, n, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        w = tl.load(
            weights + i[:, None] * n + k[None, :],
            mask=(i[:, None] < n) & (k[None, :] < n),
            other=0.0,
        )
        scale = tl.load(alpha + per_output + k * outputs, mask=k < n, other=0.0)
        r = tl.load(
            right + k[:, None] * m + j[None, :],
            mask=(k[:, None] < n) & (j[None, :] < m),
            other=0.0,
        )
        total += tl.dot(w, scale[:, None] * r, input_precision=PRECISION)
    inside = (i[:, None] < n) & (j[None, :] < m)
    own = tl.load(right + i[:, None] * m + j[None, :], mask=inside, other=0.0)
    sums = tl.load(row_sums + per_output + i * outputs, mask=i < n, other=0.0)
    place = (problem * outputs + output) * n * m + i[:, None] * m + j[None, :]
    tl.store(rows_out + place, sums[:, None] * own - total, mask=inside)


@triton.jit
def symmetric_product_kernel(
    rows,  # [B, R, n] fp32, R = outputs * n
    out,  # [B, n, n] fp32, written
    n,
    rows_count,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    if tl.program_id(1) < tl.program_id(0):  # the mirror image writes it
        return
    problem = tl.program_id(2).to(tl.int64)
    i = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    j = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    rows += problem * rows_count * n
    total = tl.zeros((BLOCK_M, BLOCK_M), dtype=tl.float32)
    for start in range(0, rows_count, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        left = tl.load(
            rows + k[None, :] * n + i[:, None],
            mask=(k[None, :] < rows_count) & (i[:, None] < n),
            other=0.0,
        )
        right = tl.load(
            rows + k[:, None] * n + j[None, :],
            mask=(k[:, None] < rows_count) & (j[None, :] < n),
            other=0.0,
        )
        total += tl.dot(left, right, input_precision=PRECISION)
    if tl.program_id(1) == tl.program_id(0):  # a dot need not round (a, b) and (b, a) alike
        total = 0.5 * (total + tl.trans(total))
    out += problem * n * n
    inside = (i[:, None] < n) & (j[None, :] < n)
    flipped = (j[:, None] < n) & (i[None, :] < n)
    tl.store(out + i[:, None] * n + j[None, :], total, mask=inside)
    if tl.program_id(1) > tl.program_id(0):
        tl.store(out + j[:, None] * n + i[None, :], tl.trans(total), mask=flipped)


def _precision(device: torch.device) -> str:
    tensor_cores = device.type == "cuda" and torch.version.hip is None
    return "tf32x3" if tensor_cores and torch.cuda.get_device_capability(device)[0] >= 8 else "ieee"


def gradient_rows(weights: Tensor, alpha: Tensor, right: Tensor, centre: bool) -> Tensor:
    """`reference.gradient_rows` as one tensor ``[B, C, n, m]``."""
    batch, n, outputs = alpha.shape
    m = right.shape[2]
    row_sums = (weights @ alpha).contiguous()
    rows = torch.empty(batch, outputs, n, m, dtype=right.dtype, device=right.device)
    grid = (triton.cdiv(n, BLOCK_M), triton.cdiv(m, BLOCK_N), batch * outputs)
    gradient_rows_kernel[grid](
        weights.contiguous(),
        alpha.contiguous(),
        row_sums,
        right.contiguous(),
        rows,
        n,
        m,
        outputs,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        PRECISION=_precision(right.device),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    if centre:
        rows -= rows.mean(dim=(1, 2), keepdim=True)
    return rows


def agop(
    gram: Tensor, weights: Tensor, alpha: Tensor, right: Tensor | None = None, centre: bool = False
) -> Tensor:
    """`reference.agop` for float32; the default product is symmetric to the last bit."""
    rows = gradient_rows(weights, alpha, gram, centre).flatten(1, 2)  # [B, C n, n]
    if right is not None:
        return rows.mT @ gradient_rows(weights, alpha, right, centre).flatten(1, 2)
    batch, count, n = rows.shape
    out = torch.empty_like(gram, memory_format=torch.contiguous_format)
    tiles = triton.cdiv(n, BLOCK_M)
    symmetric_product_kernel[(tiles, tiles, batch)](
        rows,
        out,
        n,
        count,
        BLOCK_M=BLOCK_M,
        BLOCK_K=BLOCK_K,
        PRECISION=_precision(gram.device),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out
