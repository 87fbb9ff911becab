"""What a terminal shows of a comparison and of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..evaluation.comparison import UNSTEERED, Comparison
from ..evaluation.evaluation import Evaluation
from ..support.console import SafeConsole
from ..support.numbers import NONE, number, p_value, seconds, signed_number, with_error
from ..vectors.controls_table import PLAIN, controls_table


def wide_console() -> Console:
    """A console for tables of many columns: a log has no edge to wrap at."""
    console = SafeConsole()
    if not console.is_terminal:
        console.width = 120
    return console


def comparison_table(comparison: Comparison, title: str, method: str | None = None) -> Table:
    """Every method at the same divergence budget: score, price, chosen settings, tests.

    Args:
        method: the row that the verdict is about, shown in bold.
    """
    shown = controls_table(comparison.summary(), PLAIN)
    table = Table(title=title, caption=shown.caption)
    table.add_column("steered by", min_width=22)
    controls = ["p, un-\nsteered", "p, best\nrandom"][: len(shown.controls)]
    prices = [name.replace(" ", "\n") for name in shown.prices]
    for name in ("score", "diver-\ngence", *prices, "layers", "strength", *controls):
        table.add_column(name, justify="right", no_wrap=True)
    for line in shown.lines:
        table.add_row(*shown.cells(line), style="bold" if line.name == method else None)
    return table


def skipped_lines(comparison: Comparison) -> Iterator[str]:
    """A sentence for every reason why methods were not measured."""
    reasons: dict[str, list[str]] = {}
    for name, reason in comparison.skipped.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"Not measured, since it {reason}: {'; '.join(names)}."


def harness_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The figures of one metric of lm-evaluation-harness, each with its standard error."""
    sides = ("unsteered", "steered")
    cells = {side: with_error(row[side]["value"], row[side].get("stderr")) for side in sides}
    difference = signed_number(row["steered"]["value"] - row["unsteered"]["value"])
    test, items = row.get("test"), row.get("items")
    told = {"items": NONE if items is None else str(items), "difference": difference}
    return cells | told | {"p": NONE if test is None else p_value(test)}


def harness_table(evaluation: Evaluation) -> Table:
    table = Table(title=f"lm-eval: {evaluation.method}", caption="± standard error")
    for name in ("task", "metric", "items"):
        table.add_column(name)
    for name in ("unsteered", "steered", "p"):
        table.add_column(name, justify="right")
    for row in evaluation.harness:
        cells = harness_cells(row)
        figures = (cells[name] for name in ("items", "unsteered", "steered", "p"))
        table.add_row(row["task"], row["metric"], *figures)
    return table


def print_evaluation(evaluation: Evaluation) -> None:
    """The table, what is missing from it, the verdict, and how the items changed."""
    console, comparison = wide_console(), evaluation.comparison
    console.print(comparison_table(comparison, evaluation.task, evaluation.method))
    for sentence in skipped_lines(comparison):
        console.print(sentence)
    for reason, count in evaluation.excluded.items():
        console.print(f"Left out or cut: {count} {reason}.")
    told = evaluation.settings.get("perplexity", {})
    for name in (UNSTEERED, evaluation.method) if told else ():
        shown = ", ".join(f"{number(value)} on {kind} texts" for kind, value in told[name].items())
        console.print(f"Perplexity, {name}: {shown}.")
    if evaluation.harness:
        console.print(harness_table(evaluation))
    console.print(evaluation.verdict)
    counts = evaluation.outcomes
    console.print(
        f"Test items: {counts['win']} better, {counts['loss']} worse, {counts['tie']} the same. "
        f"{seconds(comparison.seconds)}."
    )
