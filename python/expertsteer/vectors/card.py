"""The model card of steering vectors: where they came from, what they did, how to use them."""

from __future__ import annotations

import json
import os
from typing import Any

from ..support.numbers import setting, short, unit
from ..support.text import code, markdown, markdown_rows
from .controls_table import controls_markdown
from .metadata import CALIBRATION_KEY, EVALUATION_KEY, chosen_by, understanding

PAPER = "https://arxiv.org/abs/2505.12313"
_LONGEST = 1000  # characters of a sentence from the metadata


def model_card(document: dict[str, Any], repo_id: str | None = None) -> str:
    """A Hub model card (markdown under a yaml head) from the provenance that vectors carry.

    What was not recorded is left out, what was not measured says so. Folders that models were
    loaded from are named by their last part only.

    Args:
        document: of the vectors (`SteeringVectors.describe`).
        repo_id: where the vectors will be found; without it the example says ``path/or/id``.

    Raises:
        ArtifactError: metadata of another kind than this package writes.
    """
    with understanding("provenance"):
        return _card(document, repo_id)


def _card(document: dict[str, Any], repo_id: str | None) -> str:
    from huggingface_hub import ModelCardData

    metadata = document["metadata"]
    head = ModelCardData(
        library_name="expertsteer",
        tags=["steering-vectors", "activation-steering", "expertsteer"],
        base_model=_hub_id(metadata.get("target")),
        base_model_relation=None if _hub_id(metadata.get("target")) is None else "adapter",
    )
    title = (repo_id or "Steering vectors").split("/")[-1]
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {markdown(title)}",
        _opening(document),
        _use(metadata, repo_id),
        "## Where they came from",
        markdown_rows(("", ""), _origin(metadata)),
        "## Layers",
        markdown_rows(*_layers(document["layers"])),
        "## What they did",
        *_measured(metadata),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(document: dict[str, Any]) -> str:
    target, expert = (_name(document["metadata"].get(side)) for side in ("target", "expert"))
    target = markdown(target) if target else "a model"
    learned = f", learned from the hidden states of {markdown(expert)}" if expert else ""
    return (
        f"Steering vectors for {target} of width {document['width']}{learned}. They are "
        "added to the hidden states while the model generates; no weight was trained. The method "
        f"is [ExpertSteer]({PAPER})."
    )


def _use(metadata: dict[str, Any], repo_id: str | None) -> str:
    lines = [
        "```python",
        "import expertsteer as es",
        "",
        f"vectors = es.SteeringVectors.from_pretrained({json.dumps(repo_id or 'path/or/id')})",
        "with es.attach(model, vectors):",
        "    model.generate(**inputs)",
        "```",
    ]
    return "\n".join(lines)


def _origin(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for side in ("expert", "target"):
        model = metadata.get(side) or {}
        if model:
            known = [model.get("architecture"), f"{model.get('num_layers', '?')} layers"]
            known += [f"width {model.get('hidden_size', '?')}"]
            known = [markdown(part) for part in known if part]
            known += [f"revision {code(model['revision'])}"] if model.get("revision") else []
            rows.append((side, f"{markdown(_name(model))} ({', '.join(known)})"))
    for name in ("examples", "position", "alignment", "method", "settings", "versions"):
        value = metadata.get(name)
        if value not in (None, {}, ""):
            rows.append((name, markdown(_flat(value), _LONGEST)))
    if "rule" in (metadata.get("pairing") or {}):
        rows.append(("pairs", markdown(chosen_by(metadata["pairing"]), _LONGEST)))
    return rows or [("", "not recorded: made by hand")]


def _layers(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    named = {"layer": "layer", "expert_layer": "expert layer", "nats": "information (nats)"}
    named |= {"effect": "held-out effect"}
    named |= {"norm": "norm", "scale": "scale", "validation_auc": "validation AUC"}
    shown = [key for key in named if any(row.get(key) is not None for row in rows)]
    return tuple(named[key] for key in shown), [
        tuple(markdown(short(row.get(key))) for key in shown) for row in rows
    ]


def _measured(metadata: dict[str, Any]) -> list[str]:
    parts = []
    for found in metadata.get(CALIBRATION_KEY, []):
        layers = markdown(", ".join(map(str, found["layers"])))
        parts.append(
            f"Calibrated: strength {short(found['strength'])} at layers {layers} costs "
            f"{short(found['divergence'], 3)} of a budget of {setting(found['budget'])} "
            f"({unit(found['measure'])}) on {markdown(found['texts'])} neutral texts."
        )
    for measured in metadata.get(EVALUATION_KEY, []):
        parts += [markdown(measured["verdict"], _LONGEST)]
        parts += [f"Measured: {markdown(measured['task'])}.", controls_markdown(measured)]
    return parts or ["Not measured. `expertsteer evaluate` shows them beside their controls."]


def _flat(value: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )


def _name(model: Any) -> str | None:
    """What a model is called, without the folders of somebody's machine."""
    name = (model or {}).get("name")
    if not name:
        return (model or {}).get("architecture")
    return _hub_id(model) or os.path.basename(os.path.normpath(name))


def _hub_id(model: Any) -> str | None:
    name = (model or {}).get("name")
    if not name or not isinstance(name, str) or name.count("/") != 1 or os.path.exists(name):
        return None
    return None if name[0] in "./~" or "\\" in name else name
