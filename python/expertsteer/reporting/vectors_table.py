"""What a set of steering vectors holds, as a table."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..fitting.health_report import HEALTH_KEY, MOST, Health
from ..support.numbers import fixed, setting, short
from ..vectors.metadata import CALIBRATION_KEY, chosen_by, understanding
from ..vectors.vectors import SteeringVectors

_COLUMNS = {
    "layer": "layer",
    "expert_layer": "expert\nlayer",
    "nats": "nats",
    "effect": "\neffect",
    "norm": "norm",
    "scale": "scale",
    "validation_auc": "validation\nAUC",
    "explained_variance": "explained\n(seen rows)",
    "reconstruction_error": "rec. error\n(seen rows)",
}
_SEEN = ("explained_variance", "reconstruction_error")  # of the rows the alignment was fitted on


def vectors_table(vectors: SteeringVectors, title: str) -> Group:
    """A table of the layers over one line each for expert, target and method; then the health
    check, where the vectors hold one.

    Raises:
        ArtifactError: metadata of another kind than this package writes.
    """
    with understanding("provenance"):
        return _table(vectors, title)


def _table(vectors: SteeringVectors, title: str) -> Group:
    document = vectors.describe()
    shown = [name for name in _COLUMNS if any(name in row for row in document["layers"])]
    if "effect" in shown:  # what the pair was chosen by; the information stands in the health check
        shown.remove("nats")
    if HEALTH_KEY in vectors.metadata:  # which has the same of rows that were held out
        shown = [name for name in shown if name not in _SEEN]
    table = Table(title=f"{title}: width {vectors.width}")
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right")
    for row in document["layers"]:
        table.add_row(*(short(row.get(name)) for name in shown))
    lines = [Text(f"{name}: {text}") for name, text in _origin_lines(vectors.metadata)]
    if HEALTH_KEY not in vectors.metadata:
        return Group(table, *lines)
    with understanding(HEALTH_KEY):
        health = Health.from_dict(vectors.metadata[HEALTH_KEY])
    return Group(table, *lines, health_table(health))


_HEALTH_COLUMNS = {
    "explained_variance": "expl.\nvar.",
    "reconstruction_error": "rec.\nerror",
    "auc": "expert\nAUC",
    "target_auc": "target\nAUC",
    "stability": "\nstability",
    "share": "first\neigenv.",
    "agreement": "mean\ndiff.",
    "nats": "\nnats",
    "floor": "\nfloor",
    "distinct": "distinct\nrows",
}


def health_table(health: Health) -> Group:
    """The figures of a health check, what each should be, and a mark at those that are not; then
    what is wrong, and what is good to know."""
    title = f"health: {health.examples} examples, {health.positive} with label 1"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    table.add_column("\nlayers", no_wrap=True)
    for name in _HEALTH_COLUMNS:
        table.add_column(_HEALTH_COLUMNS[name], justify="right", no_wrap=True)
    table.add_row("wanted", *(_wanted(name, health) for name in _HEALTH_COLUMNS), style="dim")
    bad = {(f.figure, pair) for f in health.findings for pair in f.pairs}
    for p in health.pairs:
        pair = p.expert_layer, p.target_layer
        cells = (_health_cell(getattr(p, n), (n, pair) in bad) for n in _HEALTH_COLUMNS)
        table.add_row(f"{p.expert_layer}->{p.target_layer}", *cells)
    lines = [Text(f"warning: {w}", style="yellow") for w in health.warnings]
    lines = lines or [Text("health: every figure is as wanted")]
    return Group(table, *lines, *(Text(f"note: {note}") for note in health.notes))


def _wanted(figure: str, health: Health) -> str:
    if figure == "nats":
        return ">floor"
    if figure not in health.limits:
        return ""
    return f"{'<' if figure in MOST else '>'}{short(float(health.limits[figure]), 2)}"


def _health_cell(value: float | None, bad: bool) -> Text:
    shown = fixed(value)
    return Text(f"!{shown}", style="bold yellow") if bad else Text(shown)


def _origin_lines(metadata: dict[str, Any]):
    for side in ("expert", "target"):
        model = metadata.get(side)
        if model:
            parts = (
                f"{model.get('architecture', 'unknown architecture')}",
                f"{model.get('num_layers', '?')} layers",
                f"width {model.get('hidden_size', '?')}",
                f"revision {model.get('revision') or 'not recorded'}",
            )
            yield side, f"{model.get('name', '?')} ({', '.join(parts)})"
    for name in ("method", "settings", "alignment", "examples", "versions"):
        value = metadata.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value:
            yield name, str(value)
    if "pairing" in metadata:
        yield "pairing", chosen_by(metadata["pairing"])
    with understanding(CALIBRATION_KEY):
        lines = [
            f"strength {short(float(c['strength']))} at layers {tuple(c['layers'])} costs "
            f"{short(float(c['divergence']))} of {setting(c['budget'])} ({c['measure']})"
            for c in metadata.get(CALIBRATION_KEY, [])
        ]
    for line in lines:
        yield "calibration", line
