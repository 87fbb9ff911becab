"""How sure an estimate is: the floor that chance gives, and an interval over examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..support.progress import progress
from ..support.telling import tell

# Per part of the examples (the halves of cross-fitting, else one), the rows of x and of y.
Draw = list[tuple[Tensor, Tensor]]


class Estimator(Protocol):
    """What a null or an interval needs to know of an estimator; see `_gaussian.Gaussian`."""

    sizes: list[int]
    lost: int
    null_rate: float

    def estimate(self, rows: Draw | None = None) -> Tensor: ...


KEPT = 0.8  # share of the examples in one draw of the interval


def permuted(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All rows of x, beside the rows of y in another order."""
    return torch.arange(size, device="cpu"), _shuffled(size, generator)


def subsampled(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`KEPT` of the rows without replacement, the same of x and y."""
    rows = _shuffled(size, generator)[: _kept(size)]
    return rows, rows


def _shuffled(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator, device="cpu")


def _kept(size: int) -> int:
    return min(size - 1, math.ceil(KEPT * size))


def _draws(
    estimator: Estimator,
    count: int,
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    seed: int,
    name: str,
) -> Tensor:
    """``[count, L_x, L_y]``, the estimate on each draw of rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            estimator.estimate([draw(size, generator) for size in estimator.sizes])
            for _ in progress(range(count), name)
        ]
    )


def require_draws(name: str, count: int | None, least: int, what: str) -> None:
    if count is not None and (not isinstance(count, int) or count < least):
        raise ValueError(f"{name} must be at least {least} {what}, came {count}")


def against_null(estimator: Estimator, nats: Tensor, permutations: int, seed: int) -> dict:
    """Floor (95 % quantile of the permutations) and z-score, ``[L_x, L_y]`` each; may warn."""
    null = _draws(estimator, permutations, permuted, seed + 1, "permutation null")
    mean, floor = null.mean(dim=0), null.quantile(0.95, dim=0)
    spread = null.std(dim=0).clamp(min=torch.finfo(null.dtype).tiny)
    _warn_of_the_low(nats, mean, floor, sum(estimator.sizes), estimator.null_rate)
    return {"floor": floor, "z_score": (nats - mean) / spread, "permutations": permutations}


def _warn_of_the_low(nats: Tensor, mean: Tensor, floor: Tensor, n: int, rate: float) -> None:
    """Say how many pairs lie under their floor, and what would lift them if they are not zero."""
    low = nats <= floor
    if not bool(low.any()):
        return
    above = (nats - mean)[low]
    ratio = (floor - mean)[low][above > 0] / above[above > 0]
    if ratio.numel():
        # The floor falls as n ** -rate; at the median pair it meets today's estimate here.
        needed = math.ceil(n * float(ratio.median()) ** (1 / rate)) + 1
        advice = (
            f"if their estimates are right, about {needed} examples would lift the median of "
            f"those that exceed the mean of the permutations above its floor (came {n})"
        )
    else:
        advice = (
            f"none of them exceeds the mean of the permutations, so no number of examples can be "
            f"told from these {n}"
        )
    tell(
        f"{int(low.sum())} of {low.numel()} layer pairs have no more information than chance "
        f"gives (the 95 % floor of the permutations): {advice}"
    )


def interval(estimator: Estimator, nats: Tensor, draws: int, seed: int) -> dict:
    """Standard error and 95 % interval over examples, ``[L_x, L_y]`` each.

    Rows drawn with replacement come twice, which neighbour counts and bias corrections take for
    information. So each draw keeps 80 % of the rows, none twice (Politis and Romano 1994), and
    the deviations from the mean of the draws are widened by ``sqrt((m - q) / (n - m))``, m of n
    rows kept and q of them lost to the fit: the variance of an estimate on m rows about the one
    on n is that of the whole times ``(n - m) / (m - q)``. The projection is held fixed.
    """
    sampled = _draws(estimator, draws, subsampled, seed + 2, "interval over examples")
    n = min(estimator.sizes)
    m = _kept(n)
    widened = math.sqrt(max(m - estimator.lost, 1) / (n - m))
    deviations = (sampled - sampled.mean(dim=0)) * widened
    low, high = (deviations.quantile(share, dim=0) for share in (0.025, 0.975))
    return {
        "standard_error": deviations.std(dim=0),
        "low": nats - high,
        "high": nats - low,
        "draws": draws,
    }
