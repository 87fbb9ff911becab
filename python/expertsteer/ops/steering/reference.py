"""Steering by a table of vectors in plain torch: the definition, and what compiled models trace.

No step depends on data, and nothing loops over the batch, so a compiler fuses an addition into
one pass over the hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

OPERATIONS = ("add", "add_keep_norm", "remove", "clamp")


def inverse_norms(table: Tensor) -> Tensor:
    """``1 / |v|`` of every row of ``[R, D]``, ``[R]`` in the table's type.

    Zero for a zero row, and for one so short that the type does not hold the quotient.
    """
    norms = torch.linalg.vector_norm(table, dim=-1, dtype=torch.float64)
    usable = norms > torch.finfo(table.dtype).tiny
    return torch.where(usable, 1 / torch.where(usable, norms, 1.0), 0.0).to(table.dtype)


def steer(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None = None,
    *,
    operation: str = "add",
    gates: Tensor | None = None,
    thresholds: Tensor | None = None,
    inverse_norms: Tensor | None = None,
) -> Tensor:
    """Steer every sequence by its own rows of a table, out of place.

    With the vectors ``v_s`` of a sequence, their strengths ``a_s`` and ``u = v / |v|``:

    - ``"add"``: ``h + sum_s a_s v_s``.
    - ``"add_keep_norm"``: the same, then rescaled to the norm of ``h`` (a zero sum stays zero, and
      a row whose norm is not finite is not rescaled).
    - ``"remove"``: for each s in turn ``h <- h - a_s (h . u_s) u_s``.
    - ``"clamp"``: for each s in turn ``h <- h + (a_s - h . u_s) u_s``.

    Skipped are row 0, zero vectors and, except by ``"clamp"``, a strength of 0. "remove" and
    "clamp" also skip a vector along which the component of ``h`` is not finite. A token without a
    vector left keeps its bits.

    Args:
        hidden: ``[B, T, D]``.
        table: ``[R, D]`` in float64 for a float64 ``hidden`` and in float32 otherwise. All
            arithmetic is in that type; the result is rounded once.
        rows: ``[B or 1, S]`` int32, the table rows of each sequence; 0 for none.
        strengths: ``[B or 1, S]`` in the table's type.
        mask: ``[B, T]`` bool, ``None`` for every token. Unselected tokens keep their bits.
        operation: one of `OPERATIONS`.
        gates: ``[B or 1]`` int32, a table row g per sequence: only tokens with
            ``h . g / |g| > threshold`` are changed. Row 0 and zero vectors are no gate.
        thresholds: ``[B or 1]`` in the table's type, with ``gates``.
        inverse_norms: ``[R]``, `inverse_norms` of the table where they are at hand.
    """
    inverse = _inverse(table, operation, gates, inverse_norms)
    wide = hidden.to(table.dtype)  # [B, T, D]
    active = rows != 0  # [B or 1, S]
    if operation != "clamp":
        active = active & (strengths != 0)
    if operation in ("add", "add_keep_norm"):
        steered = wide + _sum(table, rows, strengths, active)
        if operation == "add_keep_norm":
            steered = _with_norm_of(wide, steered)
    else:
        steered = _along(wide, table, inverse, rows, strengths, active, operation)
    change = active.any(dim=1, keepdim=True)  # [B or 1, 1]
    if gates is not None:
        change = change & _open(wide, table, inverse, gates, thresholds)
    if mask is not None:
        change = change & mask
    return torch.where(change.unsqueeze(-1), steered.to(hidden.dtype), hidden)


def displacements(tables: Tensor, rows: Tensor, strengths: Tensor, mask: Tensor) -> Tensor:
    """What `steer` adds to the tokens of every layer, ``[L, B, T, D]``.

    Where it changes nothing that is -0.0, the one number that leaves every other its bits when it
    is added (0.0 turns -0.0 into itself).

    Args:
        tables: of the layers, ``[L, R, D]``; the others as in `steer`.
    """
    active = (rows != 0) & (strengths != 0)  # [B or 1, S]
    vectors = tables[:, rows.long()]  # [L, B or 1, S, D]
    total = torch.einsum("bs,lbsd->lbd", torch.where(active, strengths, 0.0), vectors)
    change = active.any(dim=1, keepdim=True) & mask  # [B, T]
    return torch.where(change[None, :, :, None], total.unsqueeze(2), -0.0)


def _inverse(
    table: Tensor, operation: str, gates: Tensor | None, given: Tensor | None
) -> Tensor | None:
    if given is not None:
        return given
    needed = gates is not None or operation in ("remove", "clamp")
    return inverse_norms(table) if needed else None


def _sum(table: Tensor, rows: Tensor, strengths: Tensor, active: Tensor) -> Tensor:
    """``sum_s a_s v_s`` over the active vectors, ``[B or 1, 1, D]``."""
    total = None
    for s in range(rows.shape[1]):
        scaled = strengths[:, s, None] * embedding(rows[:, s], table)
        scaled = torch.where(active[:, s, None], scaled, 0.0)
        total = scaled if total is None else total + scaled
    return total.unsqueeze(1)


def _with_norm_of(source: Tensor, rows: Tensor) -> Tensor:
    before, after = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (source, rows))
    usable = torch.isfinite(before) & torch.isfinite(after) & (after > 0)
    return rows * torch.where(usable, before / torch.where(usable, after, 1.0), 1.0)


def _along(
    wide: Tensor,
    table: Tensor,
    inverse: Tensor,
    rows: Tensor,
    strengths: Tensor,
    active: Tensor,
    operation: str,
) -> Tensor:
    for s in range(rows.shape[1]):
        vector = embedding(rows[:, s], table).unsqueeze(1)  # [B or 1, 1, D]
        scale = inverse[rows[:, s]].view(-1, 1, 1)
        strength = strengths[:, s].view(-1, 1, 1)
        component = (wide * vector).sum(-1, keepdim=True) * scale  # [B, T, 1]
        usable = active[:, s].view(-1, 1, 1) & (scale != 0) & torch.isfinite(component)
        move = -(strength * component) if operation == "remove" else strength - component
        wide = torch.where(usable, wide + (move * scale) * vector, wide)
    return wide


def _open(
    wide: Tensor, table: Tensor, inverse: Tensor, gates: Tensor, thresholds: Tensor
) -> Tensor:
    """Which tokens their sequence's gate lets through, ``[B, T]``."""
    scale = inverse[gates].unsqueeze(1)  # [B or 1, 1]
    component = (wide * embedding(gates, table).unsqueeze(1)).sum(-1) * scale
    return (gates == 0).unsqueeze(1) | (scale == 0) | (component > thresholds.unsqueeze(1))
