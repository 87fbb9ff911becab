"""The table of controls as finished cells: terminal, markdown, card and page only lay them out.

It is made from json values, as a comparison gives them and as vectors carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import index
from typing import Any, NamedTuple

from ..support.numbers import (
    NONE,
    count,
    fixed,
    interval,
    number,
    p_value,
    setting,
    signed_number,
    unit,
)
from ..support.text import markdown, markdown_rows


class Look(NamedTuple):
    """How a medium shows scores, divergences and the rest; its dash for "none" and for "to"."""

    score: Callable[[float | None], str]
    divergence: Callable[[float | None], str]
    other: Callable[[float | None], str]
    dash: str


FULL = Look(number, number, number, NONE)
# Narrow, and in characters that every terminal has.
PLAIN = Look(partial(fixed, bare=True), partial(fixed, places=3), fixed, "-")


class Against(NamedTuple):
    """One test of a row against a control.

    Attributes:
        p: corrected; lower: whether the method is below the control, where a small p is no success.
        difference: to the control, with its interval.
    """

    p: str
    lower: bool
    difference: str

    @property
    def text(self) -> str:
        return self.p + (" ↓" if self.lower else "")


class Line(NamedTuple):
    """One method, every figure as text; names are as they are, not escaped.

    Attributes:
        score: mean and interval; prices: in the order of the table's.
        strength: what a prompt costs stands in its place.
        tests: in the order of the table's controls, ``None`` where there is none.
        tried: how many settings were compared on validation.
    """

    name: str
    kind: str
    score: str
    divergence: str
    within: bool
    prices: list[str]
    layers: str
    strength: str
    tests: list[Against | None]
    tried: str


class ControlsTable(NamedTuple):
    """All methods at one price.

    Attributes:
        controls: what the methods are tested against; prices: names of further costs.
        family: over how many tests p-values are corrected.
    """

    lines: list[Line]
    controls: list[str]
    prices: list[str]
    budget: str
    unit: str
    family: str
    look: Look

    @property
    def caption(self) -> str:
        return (
            f"Budget {self.budget} {self.unit}; [ ] are 95 % bootstrap intervals; p after Holm's "
            f"correction over {self.family} tests, ↓ where the method is lower than the control; "
            "* over the budget."
        )

    def cells(self, line: Line) -> list[str]:
        """Of one line: name, score, divergence, prices, layers, strength, tests."""
        return [
            line.name,
            line.score,
            line.divergence + ("" if line.within else "*"),
            *line.prices,
            line.layers,
            line.strength,
            *(self.look.dash if test is None else test.text for test in line.tests),
        ]


def controls_table(measured: Mapping[str, Any], look: Look = FULL) -> ControlsTable:
    """The cells of what `Comparison.summary` gives."""
    rows = measured["rows"]
    controls = list(dict.fromkeys(name for row in rows for name in row["against"]))
    prices = list(dict.fromkeys(name for row in rows for name in row["prices"]))
    family = max((t["family"] for row in rows for t in row["against"].values()), default=1)
    return ControlsTable(
        [_line(row, controls, prices, look) for row in rows],
        controls,
        prices,
        setting(measured["budget"]),
        unit(measured["measure"]),
        count(family),
        look,
    )


def controls_markdown(measured: Mapping[str, Any]) -> str:
    """The table and its caption in markdown; a ``|`` or ``<`` in a method's name stays text."""
    table = controls_table(measured)
    head = ["steered by", "score [95 %]", "divergence", *table.prices, "layers", "strength"]
    head += [f"p against {name}" for name in table.controls]
    rows = [[markdown(name), *figures] for name, *figures in map(table.cells, table.lines)]
    shown = markdown_rows([markdown(name) for name in head], rows, right=True)
    return f"{shown}\n\n{table.caption}"


def _line(
    row: Mapping[str, Any], controls: Sequence[str], prices: Sequence[str], look: Look
) -> Line:
    tests = [row["against"].get(name) for name in controls]
    score = (row["score"][name] for name in ("mean", "low", "high"))
    prompted = row["prompt"] is not None
    return Line(
        row["name"],
        row["kind"],
        interval(score, look.score),
        look.divergence(row["divergence"]),
        row["within"],
        [look.other(row["prices"].get(name)) for name in prices],
        _listed(row["layers"], look),
        f"{count(row['extra_tokens'])} tokens" if prompted else look.other(row["strength"]),
        [None if test is None else _against(test) for test in tests],
        count(row["tried"]) if row["tried"] else look.dash,
    )


def _against(test: Mapping[str, Any]) -> Against:
    difference = [test["difference"][name] for name in ("mean", "low", "high")]
    shown = interval(difference, signed_number)
    return Against(p_value(test), difference[0] < 0, shown)


def _listed(layers: Sequence[int], look: Look) -> str:
    """``3``, ``1, 2, 5`` or ``0–79``."""
    layers = [index(layer) for layer in layers]  # vectors may carry what somebody edited
    if len(layers) > 3 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}{look.dash}{layers[-1]}"
    return ", ".join(map(str, layers)) or look.dash
