"""Steer one language model with what another one knows.

The four steps of ExpertSteer (arXiv 2505.12313): capture and `align`, `mutual_information` and
`pair_layers`, `fit_vectors`, `attach`. `ExpertSteer` runs them in one call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .support.versions import VERSION as __version__

# Public name -> the file that defines it; imported on first use, so that `import expertsteer` loads
# neither torch nor transformers nor matplotlib.
_PUBLIC = {
    "Alignment": "alignment.alignment",
    "HiddenStates": "states.states",
    "LayerPair": "pairing.layer_pairs",
    "LayerPairing": "pairing.layer_pairs",
    "MutualInformation": "pairing.layer_pairs",
    "StoredStates": "states.states",
    "ArtifactError": "support.reading",
    "ContrastSet": "contrast.contrast_set",
    "ContrastSetError": "contrast.rows",
    "ContrastStream": "contrast.stream",
    "SteeringVectors": "vectors.vectors",
    "Calibration": "vectors.calibration",
    "Comparison": "evaluation.comparison",
    "Health": "fitting.health_report",
    "HealthWarning": "fitting.health_report",
    "compare": "evaluation.comparing",
    "Evaluation": "evaluation.evaluation",
    "Generation": "tasks",
    "MultipleChoice": "tasks",
    "NextToken": "tasks",
    "Perplexity": "tasks",
    "TaskError": "tasks",
    "load_task": "tasks",
    "align": "alignment.aligning",
    "health": "fitting.checking",
    "calibrate": "calibration.calibrating",
    "evaluate": "evaluation.evaluating",
    "capture": "states.in_memory",
    "capture_to": "states.on_disk",
    "mutual_information": "pairing.information",
    "pair_layers": "pairing.rules",
    "RFM": "rfm",
    "fit_concepts": "pipeline.concepts",
    "fit_vectors": "fitting.fitting",
    "Gate": "steering.bank",
    "Steering": "steering.steering",
    "attach": "steering.steering",
    "detach": "steering.steering",
    "tokens_at": "steering.given_positions",
    "UnsteeredWarning": "steering.given_positions",
    "ExpertSteer": "pipeline.pipeline",
}

__all__ = [
    "RFM",
    "Alignment",
    "ArtifactError",
    "Calibration",
    "Comparison",
    "ContrastSet",
    "ContrastSetError",
    "ContrastStream",
    "Evaluation",
    "ExpertSteer",
    "Gate",
    "Generation",
    "Health",
    "HealthWarning",
    "HiddenStates",
    "LayerPair",
    "LayerPairing",
    "MultipleChoice",
    "MutualInformation",
    "NextToken",
    "Perplexity",
    "Steering",
    "SteeringVectors",
    "StoredStates",
    "TaskError",
    "UnsteeredWarning",
    "__version__",
    "align",
    "attach",
    "calibrate",
    "capture",
    "capture_to",
    "compare",
    "detach",
    "evaluate",
    "fit_concepts",
    "fit_vectors",
    "health",
    "load_task",
    "mutual_information",
    "pair_layers",
    "tokens_at",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'expertsteer' has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from .alignment.alignment import Alignment
    from .contrast.contrast_set import ContrastSet, ContrastSetError
    from .contrast.stream import ContrastStream
    from .evaluation.comparing import compare
    from .evaluation.comparison import Comparison
    from .evaluation.evaluation import Evaluation
    from .fitting.fitting import fit_vectors
    from .fitting.health_report import Health, HealthWarning
    from .pairing.information import mutual_information
    from .pairing.layer_pairs import LayerPair, LayerPairing, MutualInformation
    from .pairing.rules import pair_layers
    from .pipeline.concepts import fit_concepts
    from .pipeline.pipeline import ExpertSteer
    from .rfm import RFM
    from .states.in_memory import capture
    from .states.on_disk import capture_to
    from .states.states import HiddenStates, StoredStates
    from .steering.bank import Gate
    from .steering.given_positions import UnsteeredWarning, tokens_at
    from .steering.steering import Steering, attach, detach
    from .support.reading import ArtifactError
    from .tasks import Generation, MultipleChoice, NextToken, Perplexity, TaskError, load_task
    from .vectors.calibration import Calibration
    from .vectors.vectors import SteeringVectors
