"""Rows grouped for stratified draws, those of one pair together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def strata(labels: Sequence[int], pairs: Sequence[int | None]) -> list[list[list[int]]]:
    """Units that stay together (the rows of a pair, or one row), grouped by their labels.

    Units with the same labels are drawn together, which stratifies whatever they consist of.

    Args:
        labels: one per row; pairs: equal numbers for rows of one pair, ``None`` for one alone.

    Returns:
        Groups of units of row indices, in the order of their labels.
    """
    units: dict[Any, list[int]] = {}
    for row, pair in enumerate(pairs):
        units.setdefault(("row", row) if pair is None else ("pair", pair), []).append(row)
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for unit in units.values():
        groups.setdefault(tuple(sorted(labels[row] for row in unit)), []).append(unit)
    return [groups[key] for key in sorted(groups)]
