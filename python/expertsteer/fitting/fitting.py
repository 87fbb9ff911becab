"""Step 3, applied: one steering vector per layer pair from the aligned expert states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..alignment.aligning import align_pairs
from ..alignment.alignment import Alignment
from ..pairing.layer_pairs import LayerPairing
from ..rfm import RFM
from ..states.same_examples import require_same_examples
from ..states.scale import UNIT
from ..states.states import Captured
from ..support.versions import package_versions
from ..vectors.vectors import SteeringVectors
from .directions import fitted_directions
from .holdout import require_classes, split

DIRECTIONS = ("rfm", "mean_difference", "pca", "logistic")


def fit_vectors(
    expert: Captured,
    target: Captured,
    alignment: Alignment,
    pairing: LayerPairing,
    method: str = "rfm",
    *,
    rfm: RFM | None = None,
    validation: float = 0.2,
    seed: int = 0,
) -> SteeringVectors:
    """Fit a unit direction in the target's space for every pair, with its scale.

    The expert's states are carried into the space of the *paired* target layer (pairs that
    ``alignment`` does not hold are fitted with its settings) and one direction is found that
    separates label 1 from label 0; its sign is such that projections correlate with the label.
    A model's own vectors are the case ``fit_vectors(target, target, align(target, target,
    "identity"), LayerPairing.same(layers))``.

    Args:
        method: ``"rfm"`` (the paper); ``"mean_difference"``, ``"pca"`` (first principal component)
            or ``"logistic"`` (needs the ``sklearn`` extra), the common alternatives.
        rfm: an unfitted `RFM` whose settings are used; the default one if not given.
        validation: share of the examples, stratified by label, on which the RFM chooses its best
            iteration and the AUC in the metadata is measured; 0 for neither.
        seed: of that split.

    Returns:
        `SteeringVectors`; ``scales`` tell how far apart the target's states are, and ``metadata``
        holds the models, the pairing, the settings and the measured figures.

    Raises:
        ValueError: an unknown method, other examples in expert and target, fewer than four
            examples of either label, a pair whose layer was not captured.
    """
    if method not in DIRECTIONS:
        raise ValueError(f"method must be one of {DIRECTIONS}, came {method!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share in [0, 1), came {validation}")
    require_same_examples(expert, target)
    require_classes(target.labels)
    _require_row_labels(pairing, expert, target)
    pairs = [(p.expert_layer, p.target_layer) for p in pairing]
    aligned = align_pairs(alignment, expert, target, pairs)
    codes = aligned.encode(torch.stack([expert.layer(e) for e, _ in pairs]))  # [R, N, d_T]
    train, held = split(target.labels, target.pairs, validation, seed)
    directions, figures = fitted_directions(codes, target.labels, train, held, method, rfm)
    scales = {p.target_layer: target.scale(p.target_layer) for p in pairing}
    metadata: dict[str, Any] = {
        "expert": expert.model,
        "target": target.model,
        "pairing": json_pairing(pairing),
        "alignment": aligned.settings,
        "method": method,
        "settings": (rfm or RFM()).settings if method == "rfm" else {},
        "examples": {"count": len(target.labels), "positive": int(target.labels.sum())},
        "position": target.position,
        "unit": UNIT,
        "figures": figures | alignment_figures(aligned),
        "versions": package_versions(),
    }
    vectors = {p.target_layer: v for p, v in zip(pairing, directions)}
    return SteeringVectors(vectors, scales, metadata)


def _require_row_labels(pairing: LayerPairing, expert: Captured, target: Captured) -> None:
    """Refuse a pairing whose layer numbers do not fit the rows and columns it was chosen from."""
    if pairing.matrix is None:
        return
    fits = tuple(pairing.matrix.shape) == (len(expert.layers), len(target.layers))
    if fits:
        here = replace(pairing, expert_axis=expert.layers, target_axis=target.layers)
        fits = all(here.entry(here.matrix, e, t) == nats for e, t, nats in here)
    if not fits:
        raise ValueError(
            f"pairing was chosen from {tuple(pairing.matrix.shape)} layers whose numbers are not "
            f"those of these captures (expert {expert.layers}, target {target.layers}); pass "
            "expert_layers=expert.layers and target_layers=target.layers to pair_layers"
        )


def json_pairing(pairing: LayerPairing) -> dict[str, Any]:
    """The rule, what it measured, and the pairs with what was measured of each."""
    effects = {(e, t): value for e, t, value in pairing.effects}
    rows = []
    for pair in pairing:
        row = pair._asdict() | {"nats": None if pair.nats != pair.nats else pair.nats}  # no NaN
        place = pair.expert_layer, pair.target_layer
        rows.append(row | ({"effect": effects[place]} if place in effects else {}))
    told = {n: pairing.settings[n] for n in ("effect", "unit", "why") if n in pairing.settings}
    return {"rule": pairing.rule} | told | {"pairs": rows}


def alignment_figures(aligned: Alignment) -> dict[str, Any]:
    named = {
        "explained_variance": aligned.explained_variance,
        "reconstruction_error": aligned.reconstruction_error,
    }
    # json has no NaN: null where the states do not vary
    return {
        name: [None if v != v else v for v in values.tolist()]
        for name, values in named.items()
        if values is not None
    }
