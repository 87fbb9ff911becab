"""Every setting of a grid with its figures, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .metrics import better
from .settings import Setting


@dataclass(frozen=True, eq=False)
class Grid:
    """The whole grid of a `RFM.fit_grid`.

    Attributes:
        settings: its S points.
        metric: ``"auc"`` or ``"mse"``.
        values: ``[S, iters + 1, B]`` float64, the metric of every fit on the validation rows; NaN
            where a setting had no gradients (its bandwidth was far too small).
        chosen: ``[B]``, the point that each problem kept.
    """

    settings: tuple[Setting, ...]
    metric: str
    values: Tensor
    chosen: Tensor

    def rows(self, problem: int = 0) -> list[dict]:
        """One dictionary per point, in order: the setting, its best fit, and that fit's metric."""
        table = []
        for s, setting in enumerate(self.settings):
            values = self.values[s, :, problem]
            best = int(better(self.metric, values).nan_to_num(nan=-torch.inf).argmax())
            table.append(
                {
                    "bandwidth": setting.bandwidth,
                    "reg": setting.reg,
                    "center_grads": setting.center_grads,
                    "iteration": best,
                    self.metric: float(values[best]),
                    "chosen": s == int(self.chosen[problem]),
                }
            )
        return table


def grid_settings(
    bandwidth: Sequence[float], reg: Sequence[float], center_grads: Sequence[bool]
) -> tuple[Setting, ...]:
    """All combinations, centring running fastest and the bandwidth slowest."""
    for name, values in (("bandwidth", bandwidth), ("reg", reg)):
        if not len(values) or not all(0 < v < float("inf") for v in values):
            raise ValueError(f"{name} must be positive finite numbers, came {values!r}")
    if not len(center_grads) or not all(isinstance(c, bool) for c in center_grads):
        raise ValueError(f"center_grads must be booleans, came {center_grads!r}")
    return tuple(Setting(*point) for point in product(bandwidth, reg, center_grads))
