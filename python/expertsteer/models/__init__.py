"""A transformers model as it is: load, describe, find its layers, run, score and write text."""

from .decoder import DecoderLayers, DecoderNotFoundError, find_decoder
from .description import describe, hidden_size
from .loading import load

__all__ = [
    "DecoderLayers",
    "DecoderNotFoundError",
    "describe",
    "find_decoder",
    "hidden_size",
    "load",
]
