"""Steering, checked: the call goes to the chosen backend."""

from __future__ import annotations

from torch import Tensor

from ..choice import choose
from .check import check_steer


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
    backend: str = "auto",
) -> Tensor:
    """Checked `reference.steer`; fast backends work in place, so use the returned tensor.

    Raises:
        ValueError: an argument has the wrong shape, type or device, ``operation`` is unknown, or
            a row lies outside the table (not checked under a compiler or a graph capture).
        BackendError: ``backend`` cannot serve the call.
    """
    given = (hidden, table, rows, strengths, mask)
    options = {"gates": gates, "thresholds": thresholds, "inverse_norms": inverse_norms}
    check_steer(*given, operation, **options)
    chosen = choose("steer", backend, hidden.device, hidden.dtype)
    return chosen(*given, operation=operation, **options)
