"""What a stopped evaluation has measured, so that the same call goes on from there.

A file of json lines, each with the fingerprint of everything that decides its value: models,
captures, task, texts, options. Lines of other fingerprints stay where they are and are not read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..models.identity import identity
from ..states.states import Captured
from ..support.digests import digest
from ..support.numbers import count
from ..support.paths import local_path
from ..support.progress import note
from ..support.reading import read_text
from ..support.versions import VERSION
from ..support.writing import made_folder
from ..vectors.vectors import SteeringVectors
from .comparison import ComparisonRow
from .equal_price import Chosen
from .statistics import Interval


class Kept:
    """Results by kind and name, in memory and, with a path, in a file.

    Attributes:
        seconds: that the kept results took when they were measured.
        others: results in the file that belong to other settings.
    """

    def __init__(self, path: Path | None = None, fingerprint: str = ""):
        self.path, self.fingerprint = path, fingerprint
        self.seconds, self.others = 0.0, 0
        self._known: dict[tuple[str, str], Any] = {}
        for line in _lines(path):
            if line.get("of") == fingerprint:
                self._known[line["kind"], line["name"]] = line["value"]
                self.seconds += line["seconds"]
            else:
                self.others += 1

    def __len__(self) -> int:
        return len(self._known)

    def get(self, kind: str, name: str) -> Any:
        """The value that was put; ``None`` where none was."""
        return self._known.get((kind, name))

    def put(self, kind: str, name: str, value: Any, seconds: float = 0.0) -> Any:
        """Keep a json value, on disk at once, and return it."""
        self._known[kind, name] = value
        if self.path is not None:
            made_folder(self.path.parent)
            entry = {"of": self.fingerprint, "kind": kind, "name": name, "value": value}
            text = json.dumps(entry | {"seconds": seconds})  # floats come back to the bit
            with self.path.open("a+", encoding="utf-8") as stream:
                stream.seek(0)
                whole = stream.read()
                # After a line that a killed process left unfinished, on a new one.
                stream.write(("\n" if whole and not whole.endswith("\n") else "") + text + "\n")
        return value


def kept_in(
    keep: str | os.PathLike | None,
    model: Any,
    captures: Sequence[Captured | None],
    vectors: Mapping[str, SteeringVectors],
    decisive: Any,
) -> Kept:
    """What a file has of these models, captures, vectors and options; nothing without a file."""
    if keep is None:
        return Kept()
    path = local_path(keep, "keep")
    if path.is_dir():
        raise ValueError(f"keep must name a file, {path} is a folder")
    kept = Kept(path, fingerprint(model, captures, vectors, decisive))
    if kept.others and not len(kept):
        note(
            f"evaluate: the {count(kept.others)} results in {path} are of other models, texts or "
            "options and stay as they are"
        )
    return kept


def _lines(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    found = []
    for line in read_text(path).splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # a killed process's half line
            continue
        if isinstance(entry, dict) and {"of", "kind", "name", "value", "seconds"} <= entry.keys():
            found.append(entry)
    return found


def row_values(row: ComparisonRow, chosen: Chosen | None) -> dict[str, Any]:
    """A row without its tests, and the setting behind it, as json values."""
    values = row.to_dict() | {"against": {}}
    setting = None
    if chosen is not None:
        setting = asdict(chosen) | {"vectors": list(chosen.vectors.layers)}
    return {"row": values, "chosen": setting}


def row_of(values: dict[str, Any]) -> ComparisonRow:
    """The row of `row_values`."""
    row = dict(values["row"])
    row["score"] = Interval(**row["score"])
    return ComparisonRow(**row | {name: tuple(row[name]) for name in ("values", "layers")})


def chosen_of(values: dict[str, Any], variants: Sequence[SteeringVectors]) -> Chosen | None:
    """The setting of `row_values`, of vectors that were made again."""
    setting = values["chosen"]
    if setting is None:
        return None
    vectors = variants[0 if setting["sign"] == 1 else 1].select(setting["vectors"])
    return Chosen(**setting | {"rank": tuple(setting["rank"]), "vectors": vectors})


def fingerprint(
    model: Any,
    captures: Sequence[Captured | None],
    vectors: Mapping[str, SteeringVectors],
    decisive: Any,
) -> str:
    """Of everything that decides a result: the target's weights, the captures to the bit, the
    vectors, and whatever else has a ``repr`` of its own."""
    about = [
        VERSION,
        {name: value for name, value in identity(model).items() if name != "name"},
        [None if one is None else _of_capture(one) for one in captures],
        {name: one.fingerprint for name, one in vectors.items()},
        decisive,
    ]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _of_capture(states: Captured) -> tuple:
    ends = dict.fromkeys((states.layers[0], states.layers[-1]))
    return states.layers, digest(states.labels), *(digest(states.layer(layer)) for layer in ends)
