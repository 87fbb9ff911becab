"""Vectors from two models and no labels: what an expert has that the model it came from lacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..alignment.aligning import align, align_pairs, require_choice, same_depth
from ..alignment.alignment import Alignment
from ..alignment.low_rank import chosen_rank
from ..alignment.subspace import principal_axes
from ..pairing.layer_pairs import LayerPairing
from ..states.same_examples import require_same_examples
from ..states.scale import UNIT
from ..states.states import Captured
from ..support.versions import package_versions
from ..vectors.vectors import SteeringVectors
from .fitting import alignment_figures, json_pairing

CONTRASTS = ("mean_difference", "pca")
REG = 1e-2  # of the regression of the expert's states on the base's


def contrast_models(
    expert: Captured,
    base: Captured,
    target: Captured,
    pairing: LayerPairing,
    alignment: Alignment | None = None,
    method: str = "mean_difference",
    *,
    seed: int = 0,
) -> SteeringVectors:
    """Unit directions for the target from an expert and the model it came from, without labels.

    After UNLOCK (arXiv 2604.06377), which contrasts a model that has a capability with one that
    lacks it and carries the direction over through a low-rank linear map; the formulas are this
    package's. With h_i and b_i the states of expert and base on text i, s the target's standard
    deviations, coordinate by coordinate, and W the linear part of the map from expert to target,

        "mean_difference":  c_i = (h_i - b_i) W,     direction  mean_i c_i
        "pca":              c_i = (h_i - p(b_i)) W,  direction  s * top principal axis of c_i / s

    where p is the low-rank regression of the expert's states on the base's, fitted for each fifth
    of the texts on the others: what is left is what the base's states do not tell of the
    expert's. The principal axis is taken in standard units, so that a few enormous coordinates of
    the target do not choose it; the default map is in standard units too (see `align`).

    Args:
        expert, base, target: captures over the same texts, ``[L, N, D]`` each, for example of
            ``ContrastSet.unlabelled(texts)``. For layers of one model against its earlier ones,
            ``take`` them from one capture.
        pairing: the (expert layer, target layer) pairs. The base's layer is the one at the same
            relative depth among those captured.
        alignment: from the expert to the target, by default ``align(expert, target, "low_rank")``;
            pairs that it does not hold are fitted with its settings.
        method: ``"mean_difference"`` needs states in one coordinate system: equal widths, and a
            base from which the expert was made. ``"pca"`` takes any two models, since the base is
            regressed on; a regression leaves no mean, so it finds in what the texts *differ* for
            the expert alone, and which end is which is not in the states. The sign is the one with
            the longer tail (positive skewness): try both.
        seed: of the folds.

    Returns:
        `SteeringVectors`; ``scales`` are as in `fit_vectors`, and ``metadata`` holds all three
        models, the pairs, the base's layers, the settings and, per pair, ``constant_share`` (the
        share of the mean squared length of c / s that is in its mean, without what chance puts
        there; 1 where all texts show the same difference, about 0 where none does) and for
        ``"pca"`` ``component_share`` (of the variance of c / s, along the axis) and
        ``base_explained`` (the share of the expert's variance, in standard units, that the base
        tells of texts not fitted on: near 1, there is nothing left to find), beside the
        alignment's.

    Raises:
        ValueError: an unknown method, captures over different texts, fewer than two texts, widths
            of expert and base that differ with ``"mean_difference"``, a layer that was not
            captured, an expert that does not differ from its base.
    """
    require_choice("method", method, CONTRASTS)
    require_same_examples(expert, base, ("expert", "base"))
    require_same_examples(expert, target)
    if method == "mean_difference" and expert.width != base.width:
        raise ValueError(
            f"method='mean_difference' needs one width, came {expert.width} (expert) and "
            f"{base.width} (base): their states have no common coordinates to subtract; use "
            "method='pca'"
        )
    pairs = [(p.expert_layer, p.target_layer) for p in pairing]
    if alignment is None:
        aligned = align(expert, target, "low_rank", pairing=pairs, seed=seed)
    else:
        aligned = align_pairs(alignment, expert, target, pairs)
    below = dict(same_depth(expert, base))
    vectors: dict[int, Tensor] = {}
    figures: dict[str, list[float]] = {}
    for row, (e, t) in enumerate(pairs):
        weight = aligned.encoder_weight[row]
        h, b = expert.layer(e), base.layer(below[e])
        difference, explained = _difference(h, b, method, target.pairs, seed)
        units = target.layer(t).double().std(dim=0, correction=0)
        codes = difference.to(weight) @ weight
        vectors[t], found = _direction(codes, units, method, e)
        for name, value in (found | explained).items():
            figures.setdefault(name, []).append(value)
    metadata: dict[str, Any] = {
        "expert": expert.model,
        "base": base.model,
        "target": target.model,
        "pairing": json_pairing(pairing),
        "base_layers": [below[e] for e, _ in pairs],
        "alignment": aligned.settings,
        "method": f"contrast of two models: {method}",
        "settings": {"seed": seed} | ({"reg": REG} if method == "pca" else {}),
        "examples": {"count": len(target)},
        "position": target.position,
        "unit": UNIT,
        "figures": figures | alignment_figures(aligned),
        "versions": package_versions(),
    }
    return SteeringVectors(vectors, {t: target.scale(t) for t in vectors}, metadata)


def _difference(
    h: Tensor, b: Tensor, method: str, pairs: Tensor | None, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """The expert's states less the base's, or less what those tell of them: ``[N, d_E]`` float64,
    with the figures of the second."""
    h, b = h.double(), b.double()
    if method == "mean_difference":
        return h - b, {}
    _, told = chosen_rank(b, h, REG, pairs, seed)
    around = h - h.mean(dim=0)
    units = around.square().sum(dim=0)
    left = (h - told).square().sum(dim=0) / units.clamp(min=_TINY)
    varying = units > 0
    share = 1 - float(left[varying].mean()) if bool(varying.any()) else 0.0
    return h - told, {"base_explained": share}


def _direction(
    codes: Tensor, units: Tensor, method: str, layer: int
) -> tuple[Tensor, dict[str, float]]:
    """The unit direction ``[d_T]`` of differences carried over, and what was measured of them."""
    rows = len(codes)
    # A coordinate that no text moves is no direction to steer along.
    standard = torch.where(units > 0, codes.double() / units.clamp(min=_TINY), 0.0)
    mean = standard.mean(dim=0)
    around = standard - mean
    length, variance = standard.square().sum() / rows, around.square().sum() / rows
    if not length > 0:
        raise ValueError(
            f"expert and base have equal states at expert layer {layer}, as far as the target "
            "shows them: there is no direction to find; use another layer, or another base"
        )
    constant = mean.square().sum() - variance / (rows - 1)  # less what chance puts there
    figures = {"constant_share": max(0.0, float(constant / length))}
    if method == "pca":
        axis = principal_axes(around, 1)[:, 0]
        along = around @ axis
        figures["component_share"] = float(along.square().sum() / rows / variance)
        mean = axis if along.pow(3).sum() >= 0 else -axis
    direction = mean * units
    return (direction / direction.norm()).to(codes.dtype), figures


_TINY = torch.finfo(torch.float64).tiny
