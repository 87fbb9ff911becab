"""Calls of `ops.steer` drawn at random, and its definition one token at a time."""

import torch
from torch import Tensor

from expertsteer import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Odd widths, one that is a whole number of 16-byte accesses, and one too wide for shared memory.
SHAPES = [(1, 1, 1), (2, 3, 17), (3, 1, 63), (3, 4, 257), (2, 3, 1024), (2, 2, 12304)]
OPERATIONS = ops.STEER_OPERATIONS


def by_hand(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None = None,
    *,
    operation: str = "add",
    gates: Tensor | None = None,
    thresholds: Tensor | None = None,
) -> Tensor:
    """The definition in double precision, one token and one vector at a time."""
    batch, tokens, _ = hidden.shape
    table, out = table.double(), hidden.double().clone()
    for b in range(batch):
        own = b if rows.shape[0] > 1 else 0
        amounts = strengths[b if strengths.shape[0] > 1 else 0].double()
        vectors = [(table[r], a) for r, a in zip(rows[own].tolist(), amounts) if r != 0]
        for t in range(tokens):
            h = out[b, t].clone()
            if mask is not None and not mask[b, t]:
                continue
            if gates is not None:
                at = b if gates.shape[0] > 1 else 0
                limit = thresholds[b if thresholds.shape[0] > 1 else 0].double()
                gate = table[int(gates[at])]
                if int(gates[at]) != 0 and not h @ gate / gate.norm() > limit:
                    continue
            norm = h.norm()
            for vector, amount in vectors:
                unit = vector / vector.norm()
                if operation in ("add", "add_keep_norm"):
                    h = h + amount * vector
                elif operation == "remove":
                    h = h - amount * (h @ unit) * unit
                else:
                    h = h + (amount - h @ unit) * unit
            if operation == "add_keep_norm" and h.norm() > 0:
                h = h * (norm / h.norm())
            out[b, t] = h
    return out


def case(shape, dtype, device="cpu", vectors=1, table_rows=5, shared=False):
    """Arguments of a call, all drawn at random; ``shared``: one entry for all sequences."""
    batch, tokens, width = shape
    entries = 1 if shared else batch
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = torch.randn(table_rows, width, dtype=torch.float64)
    table[0] = 0
    arguments = {
        "hidden": (3 * torch.randn(shape, dtype=torch.float64)).to(dtype),
        "table": table.to(wide),
        "rows": torch.randint(0, table_rows, (entries, vectors), dtype=torch.int32),
        "strengths": torch.randn(entries, vectors, dtype=torch.float64).to(wide),
        "mask": torch.rand(batch, tokens) < 0.6,
        "gates": torch.randint(0, table_rows, (entries,), dtype=torch.int32),
        "thresholds": torch.randn(entries, dtype=torch.float64).to(wide),
    }
    arguments["rows"][0, 0] = table_rows - 1  # at least one sequence is steered
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def without(arguments, *names):
    return {name: value for name, value in arguments.items() if name not in names}


def assert_close(got, expected, wide):
    """Equal to one rounding of the result's type and a few of the row's norm in ``wide``."""
    scale = expected.norm(dim=-1, keepdim=True).expand_as(expected).clamp(min=1.0)
    room = 0.51 * torch.finfo(got.dtype).eps * expected.abs() + 16 * torch.finfo(wide).eps * scale
    room = room + (2.0**-25 if got.dtype == torch.float16 else 0)  # half a subnormal
    wrong = (got.double() - expected).abs() > room
    assert not bool(wrong.any()), f"{int(wrong.sum())} elements, {got[wrong][:3]}"
