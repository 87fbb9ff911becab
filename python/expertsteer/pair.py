"""Step 2, second part: which expert layer is paired with which target layer."""

from __future__ import annotations

import torch
from torch import Tensor

from .artifacts import LayerPair, LayerPairing, MutualInformation, require_finite

RULES = ("lowest", "highest", "random")


def pair_layers(
    information: Tensor | MutualInformation,
    k: int = 4,
    rule: str = "lowest",
    *,
    expert_layers: tuple[int, ...] | None = None,
    target_layers: tuple[int, ...] | None = None,
    seed: int = 0,
) -> LayerPairing:
    """Choose k (expert layer, target layer) pairs, at most one per target layer.

    ``"lowest"`` (the paper) and ``"highest"`` walk over all pairs in order of information and take
    every pair whose target layer is still free; ties go to the lower expert layer, then to the
    lower target layer. ``"random"`` draws target layers and partners uniformly, as a control.

    Args:
        information: ``[L_E, L_T]`` in nats.
        k: number of pairs.
        expert_layers, target_layers: the layer each row and column stands for, by default 0, 1, ...

    Raises:
        ValueError: k outside 1..L_T, an unknown rule, labels of the wrong length.
    """
    matrix = information.nats if isinstance(information, MutualInformation) else information
    if matrix.ndim != 2:
        raise ValueError(f"information must be [L_E, L_T], came {tuple(matrix.shape)}")
    require_finite("information", matrix)
    rows, columns = matrix.shape
    if not isinstance(k, int) or not 1 <= k <= columns:
        raise ValueError(
            f"k must be an integer between 1 and the number of target layers, {columns}; came {k}"
        )
    expert_layers = _labels("expert_layers", expert_layers, rows)
    target_layers = _labels("target_layers", target_layers, columns)
    chosen = _choose(matrix, k, rule, seed)
    pairs = [LayerPair(expert_layers[e], target_layers[t], float(matrix[e, t])) for e, t in chosen]
    return LayerPairing(tuple(pairs), rule=rule, matrix=matrix)


def _choose(matrix: Tensor, k: int, rule: str, seed: int) -> list[tuple[int, int]]:
    rows, columns = matrix.shape
    if rule == "random":
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randperm(columns, generator=generator)[:k].tolist()
        return [(int(torch.randint(rows, (), generator=generator)), t) for t in targets]
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, came {rule!r}")
    # A stable sort of the flattened matrix is what breaks ties by expert, then target layer.
    order = matrix.flatten().argsort(descending=rule == "highest", stable=True).tolist()
    chosen: dict[int, int] = {}
    for flat in order:
        expert, target = divmod(flat, columns)
        if target not in chosen:
            chosen[target] = expert
        if len(chosen) == k:
            break
    return [(expert, target) for target, expert in chosen.items()]


def _labels(name: str, layers: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if layers is None else tuple(layers)
    if len(layers) != count or len(set(layers)) < count:
        raise ValueError(f"{name} must name {count} different layers, came {layers}")
    return layers
