"""What comes in: checked, batched, and moved to where distances lose no digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.tensors import as_tensor, require_finite

OUTLIER = 8.0  # lengths, in medians, beyond which a row may not decide where the centre lies


@dataclass(frozen=True)
class Problems:
    """B problems: points ``[B, N, D]``, labels ``[B, N, C]``, rows that count ``[B]`` or all."""

    X: Tensor
    y: Tensor
    sizes: Tensor | None

    def part(self, chunk: slice) -> Problems:
        """Some of the problems, without the padding that all of them share."""
        X, y = self.X[chunk], self.y[chunk]
        if self.sizes is None:
            return Problems(X, y, None)
        sizes = self.sizes[chunk]
        longest = int(sizes.max())
        ragged = sizes if bool((sizes < longest).any()) else None
        return Problems(X[:, :longest], y[:, :longest], ragged)


def problems(
    x_name: str, X: Tensor, y_name: str, y: Tensor, sizes: Tensor | None = None
) -> Problems:
    """Bring X to ``[B, N, D]`` and y to ``[B, N, C]`` in one floating-point type."""
    if not isinstance(X, Tensor) or X.ndim not in (2, 3) or not X.is_floating_point():
        came = f"{tuple(X.shape)} of {X.dtype}" if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(
            f"{x_name} must be a floating point tensor [N, D] or [B, N, D], came {came}"
        )
    batch, rows = (X.shape[0] if X.ndim == 3 else 1), X.shape[-2]
    y = as_tensor(y).to(X.device)
    if y.ndim == 1:
        y = y.unsqueeze(-1)
    if y.ndim == 2 and y.shape[0] == rows:
        y = y.expand(batch, *y.shape)
    if y.ndim != 3 or y.shape[:2] != (batch, rows) or not y.shape[2]:
        raise ValueError(
            f"{y_name} must be [{rows}], [{rows}, C] or [{batch}, {rows}, C] for {x_name} of shape "
            f"{tuple(X.shape)}, came {tuple(y.shape)}"
        )
    dtype = torch.float64 if X.dtype == torch.float64 else torch.float32
    X = X.detach() if X.ndim == 3 else X.detach().unsqueeze(0)
    y = y.detach().to(dtype)
    sizes = _sizes(x_name, sizes, batch, rows, X.device)
    if sizes is not None:  # whatever lies in the padding, NaN too, is no data
        padding = torch.arange(rows, device=X.device) >= sizes.view(-1, 1)
        X = X.masked_fill(padding.unsqueeze(-1), 0)
        y = y.masked_fill(padding.unsqueeze(-1), 0)
    require_finite(x_name, X)
    require_finite(y_name, y)
    return Problems(X.to(dtype), y, sizes)


def _sizes(name: str, sizes: Tensor | None, batch: int, rows: int, device) -> Tensor | None:
    if sizes is None:
        return None
    sizes = torch.as_tensor(sizes, device=device)
    if sizes.shape != (batch,) or sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise ValueError(
            f"the sizes for {name} must be {batch} integers, one per problem, came "
            f"{tuple(sizes.shape)} of {sizes.dtype}"
        )
    if not bool(((sizes >= 1) & (sizes <= rows)).all()):
        raise ValueError(
            f"the sizes for {name} must lie between 1 and its {rows} rows, came {sizes.tolist()}"
        )
    return sizes.long() if bool((sizes < rows).any()) else None


def require_trainable(given: Problems) -> None:
    """At least two rows and two different labels in every problem."""
    n = given.X.shape[1]
    sizes = given.X.new_full((len(given.X),), n, dtype=torch.int64)
    sizes = (sizes if given.sizes is None else given.sizes).cpu()
    if int(sizes.min()) < 2:
        short = (sizes < 2).nonzero().flatten().tolist()
        raise ValueError(
            f"X must hold at least 2 rows, came {int(sizes.min())} in problems {short}"
        )
    inside = (torch.arange(n, device="cpu") < sizes.view(-1, 1)).unsqueeze(-1).to(given.y.device)
    constant = ~(inside & (given.y != given.y[:, :1])).flatten(1).any(dim=1)
    if bool(constant.any()):
        raise ValueError(
            f"y is the same in every row of problems {constant.nonzero().flatten().tolist()}: "
            "there is nothing to separate; give rows of both classes"
        )


def centre(X: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points ``[B, N, D]`` about a centre ``[B, 1, D]``, padding zero; returns both.

    Distances do not depend on the centre, but inner products about a far one lose their digits.
    The mean is a good centre unless a few huge rows drag it away; those are then left out of it.

    Raises:
        ValueError: all rows of a problem are equal.
    """
    inside = None
    if sizes is not None:
        inside = (torch.arange(X.shape[1], device=X.device) < sizes.view(-1, 1)).unsqueeze(-1)
    mean, points = _about_mean(X, inside)
    for _ in range(4):  # one huge row out of n drags the mean, and with it all others, by 1/n
        length = torch.linalg.vector_norm(points, dim=-1, keepdim=True)  # [B, N, 1]
        length = length if inside is None else length.masked_fill(~inside, float("nan"))
        typical = length.nanmedian(dim=1, keepdim=True).values
        if not bool((length > OUTLIER * typical).any()):
            break
        mean, points = _about_mean(X, length <= 2 * typical)
    points = points if inside is None else points * inside
    equal = length.nan_to_num(0, posinf=1).flatten(1).amax(dim=1) == 0
    if bool(equal.any()):
        raise ValueError(
            f"all rows of X are equal in problems {equal.nonzero().flatten().tolist()}, so there "
            "is nothing to learn from"
        )
    return points, mean


def _about_mean(X: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    if inside is None:
        mean = X.mean(dim=1, keepdim=True)
    else:
        count = inside.sum(dim=1, keepdim=True).clamp(min=1)
        mean = torch.where(inside, X, 0).sum(dim=1, keepdim=True) / count
    return mean, X - mean
