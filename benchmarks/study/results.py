"""The results file of the study: one json line per cell."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = (
    "name",
    "expert_layer",
    "layers",
    "strength",
    "divergence",
    "validation",
    "validation_probability",
    "accuracy",
    "probability",
    "auc",
    "explained",
)


@dataclass(frozen=True)
class Cell:
    """One line of the results.

    ``kind`` is ``"table"`` (every method through `compare`), ``"joint"`` (the same at all layers
    together), ``"pairs"`` (every layer pair by itself, and other alignments and vectors at single
    layers), ``"random"`` (many random directions) or ``"expert"`` (what an expert knows by
    itself).
    """

    kind: str
    task: str
    expert: str
    size: int
    seed: int
    budget: float

    @property
    def key(self) -> tuple:
        return tuple(asdict(self).values())


def listed(**entries: Any) -> list:
    """A row in the order of `COLUMNS`, rounded; what is not given is ``None``."""
    values = [entries.get(column) for column in COLUMNS]
    return [round(v, 4) if isinstance(v, float) else v for v in values]


FIELDS = tuple(Cell.__dataclass_fields__)


def finished(results: Path, fields: Sequence[str] = FIELDS) -> dict[tuple, dict]:
    """Every cell of a results file by its key, the values of ``fields``.

    A line that a killed run left unfinished is none.
    """
    cells: dict[tuple, dict] = {}
    if results.exists():
        for line in results.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            key = tuple(entry[name] for name in fields)
            cells.setdefault(key, entry)
    return cells


def append(results: Path, entry: dict, fields: Sequence[str] = FIELDS) -> None:
    """Add a line unless the cell has one; several processes may do so at once."""
    results.parent.mkdir(parents=True, exist_ok=True)
    key = tuple(entry[name] for name in fields)
    with results.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if key in finished(results, fields):
            return
        file.seek(0)
        text = file.read()
        cut = "\n" if text and not text.endswith("\n") else ""  # after a killed run's half line
        file.write(cut + json.dumps(entry, separators=(",", ":")) + "\n")
