"""Step 1: the map from one model's states into the space of another."""

from .aligning import ALIGNMENTS, ROTATIONS, SOLVERS, align
from .alignment import Alignment

__all__ = ["ALIGNMENTS", "ROTATIONS", "SOLVERS", "Alignment", "align"]
