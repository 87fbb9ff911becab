"""The embedded demo: two small checkpoints, the world they were trained on, and a run of all steps.

model, tokenizer = load("target")
contrast = contrast_set()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contrast.contrast_set import ContrastSet
from ..models import loading as models
from . import world

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CHECKPOINTS", "checkpoint", "contrast_set", "load", "world"]

CHECKPOINTS = ("expert", "target")


def checkpoint(name: str) -> Path:
    """The folder of a bundled checkpoint, ``"expert"`` or ``"target"``.

    Raises:
        ValueError: another name.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"name must be one of {CHECKPOINTS}, came {name!r}")
    return Path(__file__).parent / "checkpoints" / name


def load(name: str) -> tuple[nn.Module, Any]:
    """A bundled model in single precision, in evaluation mode, and its tokenizer."""
    import torch

    return models.load(checkpoint(name), device="cpu", dtype=torch.float32)


def contrast_set(n: int = 400, seed: int = 0) -> ContrastSet:
    """``n`` texts, the specialist's dialect (label 1) against the other (label 0), in pairs."""
    return ContrastSet.from_texts(*world.contrast_texts(n, seed))
