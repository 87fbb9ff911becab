"""How k layer pairs are chosen from a matrix: in order, together, or by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Choice:
    """The pairs of the windows, ``matrix [rows, columns]``, and how k of them are chosen."""

    matrix: Tensor
    k: int
    unique_experts: bool
    tolerance: float

    def at_random(self, seed: int) -> list[tuple[int, int]]:
        rows, columns = self.matrix.shape
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randperm(columns, generator=generator, device="cpu")[: self.k].tolist()
        if self.unique_experts:
            experts = torch.randperm(rows, generator=generator, device="cpu")[: self.k].tolist()
        else:
            experts = [
                int(torch.randint(rows, (), generator=generator, device="cpu")) for _ in targets
            ]
        return list(zip(experts, targets))

    def in_order(self, rule: str) -> list[tuple[int, int]]:
        cost = self.matrix if rule == "lowest" else -self.matrix
        everywhere = torch.ones_like(cost, dtype=torch.bool)
        return self._cheapest(cost, everywhere)

    def largest(self, listed: list[tuple[int, int]], effects: list[float]) -> list[tuple[int, int]]:
        cost = torch.zeros_like(self.matrix)
        allowed = torch.zeros_like(cost, dtype=torch.bool)
        for (e, t), value in zip(listed, effects):
            cost[e, t], allowed[e, t] = -value, True
        return self._cheapest(cost, allowed)

    def shortlist(self, size: int, by: str) -> list[tuple[int, int]]:
        """The first pairs in order of information, and more until k of them can be chosen."""
        if not isinstance(size, int) or size < self.k:
            raise ValueError(f"shortlist must be at least k = {self.k} pairs, came {size}")
        cost = self.matrix if by == "lowest" else -self.matrix
        listed: list[tuple[int, int]] = []
        for pair in self._ordered(cost):
            if len(listed) >= size and self._enough(listed):
                break
            listed.append(pair)
        return listed

    def named(
        self, pairs: Sequence[tuple[int, int]], experts: list[int], targets: list[int]
    ) -> list[tuple[int, int]]:
        """Pairs by the names of their layers as places in the windows."""
        unknown = [p for p in pairs if p[0] not in experts or p[1] not in targets]
        if unknown:
            raise ValueError(
                f"shortlist must hold layers that may be paired, came {unknown[:4]}; expert "
                f"layers {experts}, target layers {targets}"
            )
        listed = list(dict.fromkeys((experts.index(e), targets.index(t)) for e, t in pairs))
        if not self._enough(listed):
            raise ValueError(
                f"shortlist must let k = {self.k} pairs be chosen, came {len(listed)} pairs at "
                f"{len({t for _, t in listed})} target layers; list more, or lower k"
            )
        return listed

    def _enough(self, listed: list[tuple[int, int]]) -> bool:
        allowed = torch.zeros(self.matrix.shape, dtype=torch.bool, device="cpu")
        for e, t in listed:
            allowed[e, t] = True
        if not self.unique_experts:
            return int(allowed.any(dim=0).sum()) >= self.k
        return _largest_matching(allowed) >= self.k

    def _cheapest(self, cost: Tensor, allowed: Tensor) -> list[tuple[int, int]]:
        if self.unique_experts:
            return self._ordered(cost, self._assigned(cost, allowed))
        chosen: dict[int, tuple[int, int]] = {}
        for e, t in self._ordered(cost):
            if bool(allowed[e, t]) and len(chosen) < self.k:
                chosen.setdefault(t, (e, t))
        return list(chosen.values())

    def _ordered(
        self, cost: Tensor, pairs: list[tuple[int, int]] | None = None
    ) -> list[tuple[int, int]]:
        """Pairs (by default all) by rising cost; near-equal ones by expert, then target layer."""
        rows, columns = cost.shape
        if pairs is None:
            pairs = [(e, t) for e in range(rows) for t in range(columns)]
        pairs = sorted(pairs, key=lambda pair: (float(cost[pair]), pair))
        ordered: list[tuple[int, int]] = []
        equal: list[tuple[int, int]] = []
        for pair in pairs:
            if equal and float(cost[pair] - cost[equal[0]]) > self.tolerance:
                ordered += sorted(equal)
                equal = []
            equal.append(pair)
        return ordered + sorted(equal)

    def _assigned(self, cost: Tensor, allowed: Tensor) -> list[tuple[int, int]]:
        """The k pairs of least total cost with no row and no column twice.

        The square problem that scipy solves has ``columns - k`` rows and ``rows - k`` columns more,
        free of cost but barred from one another: they take up what stays unpaired.
        """
        rows, columns = cost.shape
        size = rows + columns - self.k
        # Later layers cost a little more, and crossed pairs more than parallel ones (by the
        # products); all k pairs together cost less than the tolerance.
        e, t = (torch.arange(n, dtype=cost.dtype, device="cpu") for n in (rows, columns))
        e = e[:, None]
        later = (e + t + 1 - e * t / (rows * columns)) / (rows + columns)
        cost = cost + self.tolerance * later / self.k
        barred = (float(cost.abs().max()) + 1) * 4 * size
        square = torch.zeros(size, size, dtype=cost.dtype, device="cpu")
        square[:rows, :columns] = torch.where(allowed, cost, barred)
        square[rows:, columns:] = barred
        pairs = zip(*(indices.tolist() for indices in _assignment(square)))
        return [(e, t) for e, t in pairs if e < rows and t < columns]


def _largest_matching(allowed: Tensor) -> int:
    rows, columns = _assignment(~allowed)
    return int(allowed[rows, columns].sum())


def _assignment(cost: Tensor) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost.numpy())
