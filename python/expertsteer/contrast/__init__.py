"""Labelled examples: rows checked, files read, sets, streams, and strata that stay together.

Nothing in here needs torch or transformers.
"""

from .contrast_set import ContrastSet
from .examples import Example
from .rows import ContrastSetError
from .stream import ContrastStream

__all__ = ["ContrastSet", "ContrastSetError", "ContrastStream", "Example"]
