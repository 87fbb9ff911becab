"""Where an evaluation came from: models, files, options, seeds and versions, as json values."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from ..models.description import describe
from ..states.states import Captured
from ..support.versions import package_versions
from ..tasks import Task, TaskOnModel
from ..vectors.vectors import SteeringVectors
from .comparing import Compared


def neutral_excluded(made: Compared) -> dict[str, int]:
    texts = made.equal_price.chosen_on, made.equal_price.reported_on
    counts = {
        "neutral texts cut to the context": sum(t.truncated for t in texts),
        "neutral texts with too few tokens": sum(t.excluded for t in texts),
    }
    return {reason: count for reason, count in counts.items() if count}


def provenance(
    model: nn.Module,
    on: TaskOnModel,
    expert: Captured | None,
    target: Captured | None,
    given: Mapping[str, SteeringVectors],
    neutral: Sequence[Any],
    made: Compared,
) -> dict[str, Any]:
    """Where everything came from, json values."""
    equal_price, fitting = made.equal_price, made.fitting
    effects = sum(len(p.effects) for p in fitting.pairings.values())
    capture = expert if target is None else target
    return {
        "target": describe(model, equal_price.searching.options.get("decoder_layers")),
        "expert": None if expert is None else dict(expert.model),
        "contrast": None
        if capture is None
        else {"examples": len(capture), "hash": _contrast_hash(capture)},
        "task": {
            "file": on.task.source,
            "type": type(on.task).__name__,
            "options": _options(on.task),
            "items": {name: len(items) for name, items in on.items.items()},
            "hash": _hash(on.task.items),
        },
        "neutral": {
            "texts": len(neutral),
            "tokens": [equal_price.chosen_on.tokens, equal_price.reported_on.tokens],
            "hash": _hash([list(t) if not isinstance(t, str) else t for t in neutral]),
        },
        "vectors": {name: one.metadata | _shape(one) for name, one in given.items()},
        "pairs": fitting.pairs,
        "pair effects": {"measured": effects, "passes over neutral texts": made.effect_passes},
        "seed": made.comparison.seed,
        "versions": package_versions() | {"python": platform.python_version()},
    }


def about_task(on: TaskOnModel) -> dict[str, Any]:
    """Everything that decides a task's scores."""
    return {"type": type(on.task).__name__, "options": _options(on.task), "items": on.items}


def _options(task: Task) -> dict[str, Any]:
    """How the task scores, as far as json can hold it."""
    named = {f.name: getattr(task, f.name) for f in fields(task)}
    named = {n: v for n, v in named.items() if n not in ("items", "source") and n[0] != "_"}
    return {n: getattr(v, "__qualname__", v) if callable(v) else v for n, v in named.items()}


def _shape(vectors: SteeringVectors) -> dict[str, Any]:
    return {"layers": list(vectors.layers), "fingerprint": vectors.fingerprint}


def _contrast_hash(capture: Captured) -> str | None:
    return None if capture.keys is None else _hash(capture.keys.tolist())


def _hash(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
