"""Step 2: information between layers, its estimators, and the pairs that rules make of it."""

from .information import ESTIMATORS, mutual_information
from .layer_pairs import LayerPair, LayerPairing, MutualInformation
from .rules import RULES, pair_layers

__all__ = [
    "ESTIMATORS",
    "RULES",
    "LayerPair",
    "LayerPairing",
    "MutualInformation",
    "mutual_information",
    "pair_layers",
]
