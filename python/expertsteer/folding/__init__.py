"""Vectors as biases: which families of models can, in a live model, and for good."""

from .families import FOLDABLE, why_not_foldable
from .permanent import CHECKPOINTS, fold_permanently, why_not_permanent

__all__ = ["CHECKPOINTS", "FOLDABLE", "fold_permanently", "why_not_foldable", "why_not_permanent"]
