"""Figures and layers of several pairs in a few words."""

from __future__ import annotations

from ..support.numbers import rough
from .health_report import PairHealth


def value_range(values: list[float]) -> str:
    ends = [rough(v) for v in values]
    low, high = ends[values.index(min(values))], ends[values.index(max(values))]
    return low if low == high else f"{low} to {high}"


def layers_named(pairs: list[PairHealth], side: str) -> str:
    if side == "pair":
        return "layers " + ", ".join(f"{p.expert_layer}->{p.target_layer}" for p in pairs)
    layers = sorted({getattr(p, f"{side}_layer") for p in pairs})
    return f"{side} layer{'s' * (len(layers) > 1)} " + ", ".join(map(str, layers))
