"""Step 2, second part: which expert layer is paired with which target layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ._progress import progress
from .artifacts import LayerPair, LayerPairing, MutualInformation, require_finite

RULES = ("lowest", "highest", "random", "validated")

Effect = Callable[[int, int], float]


def pair_layers(
    information: Tensor | MutualInformation,
    k: int = 4,
    rule: str = "lowest",
    *,
    expert_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    unique_experts: bool = False,
    skip_first: int = 0,
    skip_last: int = 0,
    expert_window: tuple[int, int] | None = None,
    target_window: tuple[int, int] | None = None,
    tolerance: float = 1e-9,
    effect: Effect | None = None,
    shortlist: int | None = None,
    shortlist_by: str = "lowest",
    seed: int = 0,
) -> LayerPairing:
    """Choose k (expert layer, target layer) pairs, at most one per target layer.

    ``"lowest"`` (the paper) and ``"highest"`` walk over all pairs in order of information and take
    every pair whose target layer is still free. ``"random"`` draws target layers and partners
    uniformly, as a control. ``"validated"`` measures ``effect`` on a shortlist by information and
    walks over that in order of falling effect.

    Near-ties: walking in order, values within ``tolerance`` of the first of them count as equal,
    and among equals the lower expert layer, then the lower target layer comes first. Pass a
    standard error (`MutualInformation.standard_error`) to let no difference below it decide.

    Args:
        information: ``[L_E, L_T]`` in nats.
        k: number of pairs.
        expert_layers, target_layers: the layer each row and column stands for, by default 0, 1, ...
        unique_experts: at most one pair per expert layer too. The k pairs are then chosen together,
            as the assignment whose total is the lowest (highest; for ``"validated"`` that of the
            effects is the highest); of totals within ``tolerance`` the lower layers, paired in
            order, win.
        skip_first, skip_last: rows and columns at either end that are never paired.
        expert_window, target_window: first and last layer (both included) that may be paired, by
            the names of ``expert_layers`` and ``target_layers``.
        tolerance: in nats (for ``"validated"`` in the unit of the effect).
        effect: ``effect(expert_layer, target_layer) -> float`` on held-out data, larger is better;
            needed by ``"validated"`` alone and called once per pair of the shortlist.
        shortlist: how many pairs ``"validated"`` measures, by default ``3 k``; more where these
            hold fewer than k different target layers.
        shortlist_by: ``"lowest"`` or ``"highest"`` information.
        seed: of ``"random"``.

    Raises:
        ValueError: k larger than the layers within the windows, an unknown rule, labels of the
            wrong length, an effect where none is used or none where one is needed.
    """
    matrix = information.nats if isinstance(information, MutualInformation) else information
    if matrix.ndim != 2:
        raise ValueError(f"information must be [L_E, L_T], came {tuple(matrix.shape)}")
    require_finite("information", matrix)
    matrix = matrix.detach().double().cpu()
    expert_layers = _labels("expert_layers", expert_layers, matrix.shape[0])
    target_layers = _labels("target_layers", target_layers, matrix.shape[1])
    _require_rule(rule, effect, shortlist_by, tolerance)
    rows = _within("expert_window", expert_layers, expert_window, skip_first, skip_last)
    columns = _within("target_window", target_layers, target_window, skip_first, skip_last)
    _require_room(k, len(rows), len(columns), unique_experts)
    choice = _Choice(matrix[rows][:, columns], k, unique_experts, tolerance)
    effects: dict[tuple[int, int], float] = {}
    if rule == "random":
        chosen = choice.at_random(seed)
    elif rule == "validated":
        listed = choice.shortlist(3 * k if shortlist is None else shortlist, shortlist_by)
        for e, t in progress(listed, "held-out effects"):
            pair = expert_layers[rows[e]], target_layers[columns[t]]
            effects[pair] = _measured(effect, *pair)
        chosen = choice.largest(listed, list(effects.values()))
    else:
        chosen = choice.in_order(rule)
    placed = [(rows[e], columns[t]) for e, t in chosen]
    return LayerPairing(
        tuple(
            LayerPair(expert_layers[e], target_layers[t], float(matrix[e, t])) for e, t in placed
        ),
        rule=rule,
        matrix=matrix,
        expert_axis=expert_layers,
        target_axis=target_layers,
        floor=information.floor if isinstance(information, MutualInformation) else None,
        effects=tuple((*pair, value) for pair, value in effects.items()),
        settings={
            "k": k,
            "unique_experts": unique_experts,
            "tolerance": tolerance,
            "expert_window": [expert_layers[rows[0]], expert_layers[rows[-1]]],
            "target_window": [target_layers[columns[0]], target_layers[columns[-1]]],
        },
    )


@dataclass
class _Choice:
    """The pairs of the windows, ``matrix [rows, columns]``, and how k of them are chosen."""

    matrix: Tensor
    k: int
    unique_experts: bool
    tolerance: float

    def at_random(self, seed: int) -> list[tuple[int, int]]:
        rows, columns = self.matrix.shape
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randperm(columns, generator=generator)[: self.k].tolist()
        if self.unique_experts:
            experts = torch.randperm(rows, generator=generator)[: self.k].tolist()
        else:
            experts = [int(torch.randint(rows, (), generator=generator)) for _ in targets]
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

    def _enough(self, listed: list[tuple[int, int]]) -> bool:
        allowed = torch.zeros(self.matrix.shape, dtype=torch.bool)
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
        e, t = torch.arange(rows, dtype=cost.dtype)[:, None], torch.arange(columns)
        later = (e + t + 1 - e * t / (rows * columns)) / (rows + columns)
        cost = cost + self.tolerance * later / self.k
        barred = (float(cost.abs().max()) + 1) * 4 * size
        square = torch.zeros(size, size, dtype=cost.dtype)
        square[:rows, :columns] = torch.where(allowed, cost, barred)
        square[rows:, columns:] = barred
        pairs = zip(*(indices.tolist() for indices in linear_sum_assignment(square.numpy())))
        return [(e, t) for e, t in pairs if e < rows and t < columns]


def _largest_matching(allowed: Tensor) -> int:
    rows, columns = linear_sum_assignment(~allowed.numpy())
    return int(allowed[rows, columns].sum())


def _measured(effect: Effect, expert: int, target: int) -> float:
    value = float(effect(expert, target))
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"effect must be finite, came {value} for layers {expert} and {target}")
    return value


def _labels(name: str, layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if layers is None else tuple(layers)
    if len(layers) != count or len(set(layers)) < count:
        raise ValueError(f"{name} must name {count} different layers, came {layers}")
    return layers


def _within(
    name: str,
    layers: tuple[int, ...],
    window: tuple[int, int] | None,
    skip_first: int,
    skip_last: int,
) -> list[int]:
    """Places of the layers that may be paired."""
    for skipped, count in (("skip_first", skip_first), ("skip_last", skip_last)):
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{skipped} must be a number of layers from 0 on, came {count}")
    if window is not None and len(window) != 2:
        raise ValueError(f"{name} must be (first, last), came {window}")
    first, last = (min(layers), max(layers)) if window is None else window
    places = range(skip_first, len(layers) - skip_last)
    places = [i for i in places if first <= layers[i] <= last]
    if not places:
        raise ValueError(
            f"{name} {window} with skip_first={skip_first} and skip_last={skip_last} leaves none "
            f"of the layers {layers}; widen it or skip fewer"
        )
    return places


def _require_rule(rule: str, effect: Effect | None, shortlist_by: str, tolerance: float) -> None:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, came {rule!r}")
    if (rule == "validated") != (effect is not None):
        raise ValueError(
            "effect must be given with rule='validated' and with no other: a function "
            "(expert_layer, target_layer) -> float measured on held-out data; came rule="
            f"{rule!r} and effect={effect!r}"
        )
    if shortlist_by not in ("lowest", "highest"):
        raise ValueError(f"shortlist_by must be 'lowest' or 'highest', came {shortlist_by!r}")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a finite number from 0 on, came {tolerance}")


def _require_room(k: int, rows: int, columns: int, unique_experts: bool) -> None:
    if not isinstance(k, int) or not 1 <= k <= columns:
        raise ValueError(
            f"k must be an integer between 1 and the number of target layers, {columns}; came {k}"
        )
    if unique_experts and k > rows:
        raise ValueError(
            f"k must be at most the number of expert layers, {rows}, with unique_experts=True; "
            f"came {k}"
        )
