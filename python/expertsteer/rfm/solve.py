"""The ridge regression inside every fit: never a silent failure, never a silent repair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..support.numbers import setting
from ..support.telling import tell

RIDGE_STEP = 10.0
RIDGE_STEPS = 12


def solve_raising_ridge(
    kernel: Callable[[], Tensor], y: Tensor, reg: Tensor, ridge_solve: Callable
) -> tuple[Tensor, Tensor]:
    """``alpha`` and the ridge it took ``[B]``: ``reg``, or where K + reg 1 is not numerically
    positive definite the first of 10 reg, 100 reg, ... that makes it so.

    Args:
        kernel: a fresh K ``[B, n, n]`` at every call (the factorisation overwrites it).
    """
    ridge = reg
    alpha, failed = ridge_solve(kernel(), ridge, y)
    for _ in range(RIDGE_STEPS):
        if not bool(failed.any()):
            return alpha, ridge
        if not bool(torch.isfinite(kernel()).flatten(1).all()):
            break
        ridge = torch.where(failed, ridge * RIDGE_STEP, ridge)
        alpha, failed = ridge_solve(kernel(), ridge, y)
    if not bool(failed.any()):
        return alpha, ridge
    raise ValueError(
        f"the kernel matrix of problems {failed.nonzero().flatten().tolist()} is not finite or not "
        f"positive definite even at a ridge of {setting(float(ridge.max()))}: the states' scale "
        "overflows their type; give float64 states"
    )


def warn_of_raised_ridges(asked: Tensor, taken: Tensor) -> None:
    """Say which problems of a fit needed more than their ``reg``; both ``[fits, B]``."""
    raised = (taken > asked).any(dim=0)
    if bool(raised.any()):
        tell(
            f"the kernel matrix of problems {raised.nonzero().flatten().tolist()} was not positive "
            f"definite at their reg; the ridge was raised to at most {setting(float(taken.max()))} "
            "(see ridge_). Raise reg, or give float64 states",
            RuntimeWarning,
        )
