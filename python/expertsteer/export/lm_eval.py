"""Steering vectors for the ``steered`` model of lm-evaluation-harness::

    lm_eval --model steered --model_args pretrained=TARGET,steer_path=vectors.pt --tasks ...

The harness reads a csv of features of sparse auto-encoders, which fitted vectors are not, or a
``.pt`` file, which torch writes and which is a pickle inside. There is no other way to hand it a
vector, so this is the one file of the package that is a pickle: it holds a dictionary of tensors,
numbers and texts, nothing that runs, and `read` loads it with ``weights_only=True``, which
refuses everything else. (The harness itself loads such files without that check: give it none
from strangers.)

What it steers is every position of every sequence, so ``positions="all"`` is the one that can be
written. Where it pads, padding is steered as well, which no other token of a causal model sees.
Operations: ``"add"``; ``"clamp"``; and ``"remove"`` at strength 1, which is clamping to zero.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.decoder import find_decoder, unwrapped
from ..steering.checks import checked_experts
from ..steering.strengths import resolved_strength
from ..support.numbers import setting
from ..support.paths import local_path
from ..support.reading import ArtifactError, reading
from ..support.writing import made_folder, replacing
from ..vectors.vectors import SteeringVectors
from .archives import checked_archive

_FIELDS = {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}


def write(
    path: str | os.PathLike,
    vectors: SteeringVectors,
    model: nn.Module,
    *,
    strength: float | str = 1.0,
    operation: str = "add",
    positions: str = "all",
    decoder_layers: str | None = None,
) -> Path:
    """Write a ``.pt`` file that ``--model steered`` of lm-eval loads as ``steer_path``.

    A layer's ``steering_vector`` is what strength 1 adds, ``scale * vector``, and its coefficient
    the strength: the harness adds their product, as `attach` does. For ``"clamp"`` it makes the
    vector unit itself, and the coefficient is the component that is set, ``strength * scale``
    times the vector's norm.

    Args:
        path: ends in ``.pt``, as the harness wants it.
        model: the target; it names the layers, and nothing of it is written.
        strength, operation, positions, decoder_layers: as they would be given to `attach`.

    Raises:
        ValueError: what the format cannot hold, with the reason; vectors that do not fit the
            model, a strength that is not finite.
        ArtifactError: the file reads back other than it was written.
    """
    path = local_path(path)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"path must end in .pt, or the harness refuses it, came {str(path)!r}")
    amount = resolved_strength(strength, {0: vectors}, operation)
    reason = why_not(operation, positions, amount)
    if reason:
        raise ValueError(f"lm-eval's steered model cannot hold this: {reason}")
    names = hookpoints(model, vectors, decoder_layers)
    content = {names[i]: _entry(vectors, i, amount, operation) for i in vectors.layers}
    made = io.BytesIO()
    torch.save(content, made)
    made_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_bytes(made.getvalue())
        _require_same(read(temporary), content, path)
    return path


def read(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """What `write` wrote, by hookpoint, without running anything that a file may hold.

    Raises:
        ArtifactError: not such a file.
    """
    path = local_path(path)
    with reading(path, "file of steering vectors"):  # torch raises whatever the bytes lead it to
        archive, _ = checked_archive(path, "file of steering vectors")
        content = torch.load(archive, map_location="cpu", weights_only=True)
    entries = content.items() if isinstance(content, dict) else [(None, None)]
    if not content or not all(_is_entry(name, entry) for name, entry in entries):
        raise ArtifactError(
            f"{path} must hold a dictionary of {sorted(_FIELDS)} by hookpoint, came "
            f"{type(content).__name__}"
        )
    return content


def _is_entry(name: Any, entry: Any) -> bool:
    if not isinstance(name, str) or not isinstance(entry, dict) or set(entry) != _FIELDS:
        return False
    vector, amount = entry["steering_vector"], entry["steering_coefficient"]
    return (
        isinstance(vector, Tensor)
        and vector.is_floating_point()
        and type(amount) in (int, float)
        and isinstance(entry["action"], str)
    )


def why_not(operation: str = "add", positions: Any = "all", strength: float = 1.0) -> str | None:
    """Why the format cannot hold a steering; ``None`` where it can."""
    if not isinstance(positions, str) or positions != "all":
        return f"it steers every position, so positions={positions!r} is lost; evaluate it live"
    if operation == "remove" and strength != 1:
        return (
            f"it can take a component away whole, not the share strength={setting(strength)}; use "
            "1, or evaluate it live"
        )
    if operation not in ("add", "clamp", "remove"):
        return f"it has no operation like {operation!r}, only adding and clamping"
    return None


def hookpoints(
    model: nn.Module, vectors: SteeringVectors, decoder_layers: str | None = None
) -> dict[int, str]:
    """How the harness calls each steered layer: its dotted name inside ``model.base_model``.

    Raises:
        ValueError: vectors that do not fit the model, as `attach` says; a model whose layers are
            not inside ``base_model``.
    """
    model = unwrapped(model)
    found = find_decoder(model, decoder_layers)
    checked_experts(model, vectors, found, True, "add", None)
    names = {id(module): name for name, module in model.base_model.named_modules()}
    missing = [i for i in vectors.layers if id(found.layers[i]) not in names]
    if missing:
        raise ValueError(
            f"model: layer {missing[0]} is not inside its base_model, where the harness looks"
        )
    return {i: names[id(found.layers[i])] for i in vectors.layers}


def _require_same(written: dict[str, dict], meant: dict[str, dict], path: Path) -> None:
    for name, entry in meant.items():
        held = dict(written.get(name, {}))
        vector, rest = held.pop("steering_vector", None), dict(entry)
        same = vector is not None and torch.equal(vector, rest.pop("steering_vector"))
        if not same or held != rest:
            raise ArtifactError(f"{path} reads back other than it was written at {name}")


def _entry(vectors: SteeringVectors, layer: int, strength: float, operation: str) -> dict[str, Any]:
    vector: Tensor = vectors.displacement(layer)
    coefficient = strength
    if operation == "clamp":
        coefficient = strength * float(vector.norm())
    elif operation == "remove":
        coefficient = 0.0
    return {
        "steering_vector": vector.detach().cpu().contiguous().clone(),
        "steering_coefficient": float(coefficient),
        "action": "add" if operation == "add" else "clamp",
        "bias": None,
        "head_index": None,
    }
