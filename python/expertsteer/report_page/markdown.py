"""The controls as a markdown table."""

from __future__ import annotations

from ..comparison import Comparison, ComparisonRow
from ..statistics import PairedTest
from ..support.numbers import interval, number, p_value, unit
from .words import markdown


def markdown_table(comparison: Comparison) -> str:
    """Every row of the comparison with its figures, and below it what they mean.

    Names are escaped: a ``|`` or ``<`` in a method's name stays text.
    """
    controls = control_names(comparison)
    prices = price_names(comparison)
    head = ["steered by", "score [95 %]", "divergence", *map(markdown, prices), "layers"]
    head += ["strength", *(f"p against {markdown(name)}" for name in controls)]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    lines += [_row(_cells(row, prices, controls)) for row in comparison.rows]
    lines += ["", _caption(comparison)]
    if comparison.skipped:
        lines += ["", "Not measured:", ""]
        lines += [f"- {markdown(n)}: {markdown(why)}" for n, why in comparison.skipped.items()]
    return "\n".join(lines) + "\n"


def control_names(comparison: Comparison) -> list[str]:
    """What the methods are tested against, in the order of the first test."""
    return list(dict.fromkeys(name for row in comparison.rows for name in row.against))


def price_names(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(name for row in comparison.rows for name in row.prices))


def family_of(comparison: Comparison) -> int:
    """Over how many tests p-values are corrected."""
    return max((t.family for r in comparison.rows for t in r.against.values()), default=1)


def setting_of(row: ComparisonRow) -> str:
    """Strength, or what a prompt costs instead."""
    if row.prompt is not None:
        return f"{row.extra_tokens} tokens"
    return number(row.strength)


def _cells(row: ComparisonRow, prices: list[str], controls: list[str]) -> list[str]:
    tests = [row.against.get(name) for name in controls]
    return [
        markdown(row.name),
        interval(row.score),
        number(row.divergence) + ("" if row.within else " (over the budget)"),
        *(number(row.prices.get(name)) for name in prices),
        ", ".join(map(str, row.layers)) or number(None),
        setting_of(row),
        *(number(None) if t is None else p_value(t) + lower(t) for t in tests),
    ]


def lower(test: PairedTest) -> str:
    """A mark on tests whose difference is the wrong way round: a small p there is no success."""
    return " ↓" if test.difference.mean < 0 else ""


def _caption(comparison: Comparison) -> str:
    return (
        f"Budget {number(comparison.budget)} {unit(comparison.measure)}. [ ] are 95 % bootstrap "
        f"intervals. p after Holm's correction over {family_of(comparison)} tests; ↓ where the "
        "method is lower than the control."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
