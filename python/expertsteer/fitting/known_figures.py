"""What the health check reads instead of measuring it: from the vectors, and of information."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pairing.layer_pairs import LayerPair, LayerPairing, MutualInformation
from ..rfm import RFM
from ..states.states import HiddenStates
from ..vectors.metadata import understanding
from ..vectors.vectors import SteeringVectors
from .fitting import DIRECTIONS


def method(vectors: SteeringVectors) -> str:
    named = vectors.metadata.get("method")
    return named if named in DIRECTIONS else "rfm"


def machine(vectors: SteeringVectors, rfm: RFM | None) -> RFM:
    if rfm is not None:
        return rfm
    with understanding("settings"):
        return RFM(**vectors.metadata.get("settings", {}))


def kept_figures(vectors: SteeringVectors, pairing: LayerPairing) -> list[dict[str, Any]]:
    """What `fit_vectors` measured, per pair: the AUC and the iteration it chose, if it did."""
    with understanding("figures"):
        rows = vectors.metadata.get("pairing", {}).get("pairs", [])
        row_of = {(p["expert_layer"], p["target_layer"]): i for i, p in enumerate(rows)}
        figures = vectors.metadata.get("figures", {})
        places = [row_of.get((p.expert_layer, p.target_layer)) for p in pairing]

        def kept(name: str, place: int | None) -> Any:
            return None if place is None or name not in figures else figures[name][place]

        return [
            {"validation_auc": kept("validation_auc", i), "iteration": kept("iteration", i)}
            for i in places
        ]


def information_figures(
    pairing: LayerPairing,
    information: MutualInformation | Tensor | None,
    expert: HiddenStates,
    target: HiddenStates,
) -> list[dict[str, float | None]]:
    """Nats, floor, z-score and effect of every pair, as far as they are known."""
    floor, scores, axes = pairing.floor, None, (pairing.expert_axis, pairing.target_axis)
    if isinstance(information, Tensor):
        information = MutualInformation(information)
    if information is not None:
        floor, scores, axes = information.floor, information.z_score, (expert.layers, target.layers)
        if tuple(information.nats.shape) != tuple(map(len, axes)):
            raise ValueError(
                f"information holds {tuple(information.nats.shape)} layers, the captures "
                f"{tuple(map(len, axes))}; estimate it from these captures"
            )

    def at(matrix: Tensor | None, pair: LayerPair) -> float | None:
        if matrix is None:
            return None
        return float(matrix[axes[0].index(pair.expert_layer), axes[1].index(pair.target_layer)])

    nats = None if information is None else information.nats
    effects = {(e, t): value for e, t, value in pairing.effects}
    return [
        {
            "effect": effects.get((pair.expert_layer, pair.target_layer)),
            "nats": pair.nats if nats is None else at(nats, pair),
            "floor": at(floor, pair),
            "z_score": at(scores, pair),
        }
        for pair in pairing
    ]
