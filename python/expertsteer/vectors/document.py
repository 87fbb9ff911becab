"""What a set of steering vectors holds, as json values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .metadata import understanding


def described(
    vectors: dict[int, Tensor], scales: dict[int, float], metadata: dict[str, Any]
) -> dict[str, Any]:
    """See `SteeringVectors.describe`; the metadata are checked, since files are edited.

    Raises:
        ArtifactError: metadata that `fit_vectors` cannot have written.
    """
    layers = []
    with understanding("pairing"):
        partner, figures = _partners(metadata)
        for layer, vector in vectors.items():
            entry = {"layer": layer, "norm": float(vector.double().norm()), "scale": scales[layer]}
            if layer in partner:
                row, pair = partner[layer]
                entry |= {"expert_layer": pair["expert_layer"], "nats": pair["nats"]}
                entry |= {"effect": pair["effect"]} if "effect" in pair else {}
                entry |= {name: values[row] for name, values in figures.items()}
            layers.append(entry)
    width = next(iter(vectors.values())).numel()
    return {"width": width, "layers": layers, "metadata": metadata}


def _partners(metadata: dict[str, Any]) -> tuple[dict[int, tuple[int, dict]], dict[str, list]]:
    """Each target layer's row and pair, and the figures per row."""
    pairs = metadata.get("pairing", {}).get("pairs", [])
    partner = {p["target_layer"]: (row, p) for row, p in enumerate(pairs)}
    figures = metadata.get("figures", {})
    for name, values in figures.items():
        if len(values) < len(pairs):
            raise ValueError(f"{name} holds {len(values)} figures for {len(pairs)} pairs")
    for model in (metadata.get(side) for side in ("expert", "target")):
        if model is not None and not isinstance(model, dict):
            raise TypeError(f"a model is described by a dict, came {model!r}")
    return partner, figures
