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
    "ExpertLabels": "models.labelling",
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
    "label_by_expert": "models.labelling",
    "average_experts": "alignment.anchors",
    "health": "fitting.checking",
    "NEUTRAL_TEXTS": "calibration.neutral",
    "calibrate": "calibration.calibrating",
    "evaluate": "evaluation.evaluating",
    "capture": "states.in_memory",
    "capture_to": "states.on_disk",
    "mutual_information": "pairing.information",
    "pair_layers": "pairing.rules",
    "RFM": "rfm",
    "contrast_models": "fitting.two_models",
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

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'expertsteer' has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:  # what checkers of types and editors read: `as` says that a name is public
    from .alignment.aligning import align as align
    from .alignment.alignment import Alignment as Alignment
    from .alignment.anchors import average_experts as average_experts
    from .calibration.calibrating import calibrate as calibrate
    from .calibration.neutral import NEUTRAL_TEXTS as NEUTRAL_TEXTS
    from .contrast.contrast_set import ContrastSet as ContrastSet
    from .contrast.rows import ContrastSetError as ContrastSetError
    from .contrast.stream import ContrastStream as ContrastStream
    from .evaluation.comparing import compare as compare
    from .evaluation.comparison import Comparison as Comparison
    from .evaluation.evaluating import evaluate as evaluate
    from .evaluation.evaluation import Evaluation as Evaluation
    from .fitting.checking import health as health
    from .fitting.fitting import fit_vectors as fit_vectors
    from .fitting.health_report import Health as Health
    from .fitting.health_report import HealthWarning as HealthWarning
    from .fitting.two_models import contrast_models as contrast_models
    from .models.labelling import ExpertLabels as ExpertLabels
    from .models.labelling import label_by_expert as label_by_expert
    from .pairing.information import mutual_information as mutual_information
    from .pairing.layer_pairs import LayerPair as LayerPair
    from .pairing.layer_pairs import LayerPairing as LayerPairing
    from .pairing.layer_pairs import MutualInformation as MutualInformation
    from .pairing.rules import pair_layers as pair_layers
    from .pipeline.concepts import fit_concepts as fit_concepts
    from .pipeline.pipeline import ExpertSteer as ExpertSteer
    from .rfm import RFM as RFM
    from .states.in_memory import capture as capture
    from .states.on_disk import capture_to as capture_to
    from .states.states import HiddenStates as HiddenStates
    from .states.states import StoredStates as StoredStates
    from .steering.bank import Gate as Gate
    from .steering.given_positions import UnsteeredWarning as UnsteeredWarning
    from .steering.given_positions import tokens_at as tokens_at
    from .steering.steering import Steering as Steering
    from .steering.steering import attach as attach
    from .steering.steering import detach as detach
    from .support.reading import ArtifactError as ArtifactError
    from .tasks import Generation as Generation
    from .tasks import MultipleChoice as MultipleChoice
    from .tasks import NextToken as NextToken
    from .tasks import Perplexity as Perplexity
    from .tasks import TaskError as TaskError
    from .tasks import load_task as load_task
    from .vectors.calibration import Calibration as Calibration
    from .vectors.vectors import SteeringVectors as SteeringVectors
