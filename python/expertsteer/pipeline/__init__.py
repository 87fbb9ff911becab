"""The four steps in one call, over processes, and for many concepts."""

from .concepts import fit_concepts
from .pipeline import ExpertSteer

__all__ = ["ExpertSteer", "fit_concepts"]
