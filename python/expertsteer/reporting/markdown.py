"""The controls as a markdown table."""

from __future__ import annotations

from ..evaluation.comparison import Comparison
from ..vectors.controls_table import controls_markdown
from .words import markdown


def markdown_table(comparison: Comparison) -> str:
    """Every row of the comparison with its figures, what they mean, and what was not measured."""
    lines = [controls_markdown(comparison.summary())]
    if comparison.skipped:
        lines += ["", "Not measured:", ""]
        lines += [f"- {markdown(n)}: {markdown(why)}" for n, why in comparison.skipped.items()]
    return "\n".join(lines) + "\n"
