"""Json values of any shape, such as settings, as nodes that the template can lay out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..support.numbers import count, number, setting
from .words import excerpt, line

LISTED = 40  # entries of a list that are shown


def tree(value: Any, depth: int = 4) -> tuple[str, Any]:
    """Json values as nodes for the template: (``"text"``, ``"map"``, ``"table"`` or ``"list"``, …).

    Mappings with the same keys become a table, a line for each key: figures of a few layers.
    """
    if isinstance(value, Mapping) and value and depth:
        return "map", [(line(key), tree(item, depth - 1)) for key, item in value.items()]
    if isinstance(value, (list, tuple)) and value and depth:
        if not any(isinstance(item, (Mapping, list, tuple)) for item in value):
            more = f" … and {count(len(value) - LISTED)} more" if len(value) > LISTED else ""
            return "text", ", ".join(scalar(item) for item in value[:LISTED]) + more
        if _alike(value):
            keys = [key for key in value[0] if any(item[key] is not None for item in value)]
            return "table", [(line(k), [scalar(item[k]) for item in value]) for k in keys]
        nodes = [tree(item, depth - 1) for item in value[:LISTED]]
        if len(value) > LISTED:
            nodes.append(("text", f"… and {count(len(value) - LISTED)} more"))
        return "list", nodes
    return "text", scalar(value)


def _alike(items: Sequence[Any]) -> bool:
    """Whether they are mappings of the same keys to single values, few enough for columns."""
    if len(items) > LISTED or not all(isinstance(item, Mapping) and item for item in items):
        return False
    flat = all(not isinstance(v, (Mapping, list, tuple)) for item in items for v in item.values())
    return flat and all(set(item) == set(items[0]) for item in items)


def scalar(value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return number(None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value) if abs(value) < 1e6 else setting(value)
    if isinstance(value, (Mapping, list, tuple)):
        return excerpt(json.dumps(value, default=str), 1000)
    return excerpt(value, 1000)
