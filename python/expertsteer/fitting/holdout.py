"""Rows held out of a fit, pairs kept together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contrast.strata import strata
from ..support.tensors import integers


def strata_of(labels: Tensor, pairs: Tensor | None) -> list[list[list[int]]]:
    """`strata` of a capture: labels ``[N]``, pairs ``[N]`` with -1 for rows that stand alone."""
    numbers = [None] * len(labels) if pairs is None else pairs.tolist()
    return strata(labels.tolist(), [None if p is None or p < 0 else p for p in numbers])


def split(labels: Tensor, pairs: Tensor | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices to fit on and to hold out, pairs kept together, about ``share`` of each label.

    Raises:
        ValueError: fewer than two rows of a label would be left on one of the sides.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for units in strata_of(labels, pairs):
        order = torch.randperm(len(units), generator=generator, device="cpu").tolist()
        count = max(1, round(share * len(units))) if share else 0
        held += [row for i in order[:count] for row in units[i]]
    out = integers(sorted(held))
    kept = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    kept[out] = False
    train = kept.nonzero().flatten()
    if share and min(torch.bincount(labels[train], minlength=2)) < 2:
        raise ValueError(
            f"validation={share} leaves fewer than 2 examples of a label to fit on; lower it or "
            "extend the contrast set"
        )
    return train, out


LEAST_PER_CLASS = 4


def require_classes(labels: Tensor) -> None:
    counts = torch.bincount(labels, minlength=2).tolist()
    if min(counts) < LEAST_PER_CLASS:
        raise ValueError(
            f"fitting needs at least {LEAST_PER_CLASS} examples of each label, came {counts[0]} "
            f"with label 0 and {counts[1]} with label 1; extend the contrast set"
        )
