"""Steps 1 to 3 shared out over processes: layers for the information, pairs for the vectors.

Every process reads the same captures, does its share and gets the shares of the others, so that
all hold the same result. One process alone calls the steps as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..alignment.aligning import align
from ..alignment.alignment import Alignment
from ..fitting.fitting import fit_vectors
from ..pairing.information import estimated
from ..pairing.layer_pairs import LayerPairing, MutualInformation
from ..pairing.layers import Layers
from ..rfm import RFM
from ..states.states import Captured
from ..support.ranks import Ranks
from ..support.tensors import integers
from ..vectors.vectors import SteeringVectors

_PER_PAIR = ("nats", "floor", "z_score", "low", "high", "standard_error", "shrinkage")


def information_over(
    ranks: Ranks, expert: Captured, target: Captured, **options: Any
) -> MutualInformation:
    """`mutual_information` with a null or without, the expert's layers shared out over the ranks.

    A row of the matrix needs its own expert layer and all target layers only.
    """
    rows = ranks.share(range(len(expert.layers)))
    part = estimated(_SomeLayers(expert, rows), target, **options) if rows else None
    if ranks.size == 1:
        return part
    # Layers that vary in few directions lower the number of components for all of them.
    counts = [c for c in ranks.gather(part and part.components) if c is not None]
    if part is not None and counts and part.components != min(counts):
        least = options | {"components": min(counts)}
        part = estimated(_SomeLayers(expert, rows), target, **least)
    parts = [other for other in ranks.gather(part) if other is not None]
    taken = [i for r in range(ranks.size) for i in range(len(expert.layers)) if i % ranks.size == r]
    order = integers(taken).argsort()
    whole = {
        name: torch.cat([getattr(p, name) for p in parts])[order]
        for name in _PER_PAIR
        if getattr(parts[0], name) is not None
    }
    return replace(parts[0], **whole)


def vectors_over(
    ranks: Ranks,
    expert: Captured,
    target: Captured,
    pairing: LayerPairing,
    alignment: dict[str, Any],
    direction: str,
    *,
    rfm: RFM | None,
    validation: float,
    seed: int,
) -> tuple[Alignment, SteeringVectors]:
    """`align` and `fit_vectors`, the pairs shared out over the ranks.

    Args:
        alignment: the arguments of `align` beside the captures and the pairs.
    """
    mine = tuple(ranks.share(pairing.pairs))
    part = None
    if mine:
        some = replace(pairing, pairs=mine)
        maps = align(expert, target, pairing=some, **alignment)
        options = {"rfm": rfm, "validation": validation, "seed": seed}
        part = maps, fit_vectors(expert, target, maps, some, direction, **options)
    if ranks.size == 1:
        return part
    parts = [other for other in ranks.gather(part) if other is not None]
    order = [(e, t) for e, t, _ in pairing]
    maps = _joined_maps([p[0] for p in parts], order)
    return maps, _joined_vectors([p[1] for p in parts], pairing, len(order), ranks.size)


class _SomeLayers:
    """Some layers of a capture, as a source of `mutual_information`."""

    def __init__(self, capture: Captured, rows: list[int]):
        self._capture, self._rows = capture, rows
        self.shape = (len(rows), *Layers("states", capture).shape[1:])
        self.layers, self.model = [capture.layers[row] for row in rows], capture.model

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self._capture.layer(self.layers[index])


def _joined_maps(parts: list[Alignment], order: list[tuple[int, int]]) -> Alignment:
    rows = {
        pair: (part, row)
        for part in parts
        for row, pair in enumerate(zip(part.expert_layers, part.target_layers))
    }
    joined = {
        name: torch.stack([getattr(rows[pair][0], name)[rows[pair][1]] for pair in order])
        for name, value in vars(parts[0]).items()
        if isinstance(value, Tensor)
    }
    axes = dict(zip(("expert_layers", "target_layers"), zip(*order)))
    return replace(parts[0], **axes, **joined)


def _joined_vectors(
    parts: list[SteeringVectors], pairing: LayerPairing, count: int, ranks: int
) -> SteeringVectors:
    first = parts[0].metadata
    # Rank r did the pairs r, r + ranks, ...; figures are lists with an entry per pair.
    figures = {
        name: [parts[i % ranks].metadata["figures"][name][i // ranks] for i in range(count)]
        for name in first["figures"]
    }
    pairs = [parts[i % ranks].metadata["pairing"]["pairs"][i // ranks] for i in range(count)]
    held = first["pairing"] | {"pairs": pairs}
    return SteeringVectors(
        {layer: part.vectors[layer] for part in parts for layer in part.layers},
        {layer: part.scales[layer] for part in parts for layer in part.layers},
        first | {"pairing": held, "figures": figures},
    )
