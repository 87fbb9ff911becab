"""What the page's template shows: an evaluation as finished words and numbers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..evaluation.comparison import Comparison, ComparisonRow
from ..evaluation.evaluation import Answered, Evaluation
from ..evaluation.statistics import Interval, PairedTest
from ..support.numbers import count, equals, number, p_value, setting, signed_number, unit
from ..vectors.controls_table import ControlsTable, controls_table
from .terminal import harness_cells
from .tree import tree
from .words import clean, excerpt, line

SHOWN = 12  # examples of each outcome
PROMPT_LENGTH, ANSWER_LENGTH = 700, 400  # characters of an example that the page shows
OUTCOMES = ("win", "loss", "tie")
KINDS = {
    "none": "nothing changed",
    "random": "control",
    "control": "control",
    "own": "target's own vector",
    "expert": "expert's vector",
    "given": "given vector",
    "prompt": "prompt",
}


def page_values(evaluation: Evaluation) -> dict[str, Any]:
    """Everything of the page but its charts."""
    comparison, row = evaluation.comparison, evaluation.comparison.row(evaluation.method)
    shown = controls_table(comparison.summary())
    return {
        "task": clean(evaluation.task),
        "method": line(evaluation.method),
        "verdict": clean(evaluation.verdict),
        "status": status(row),
        "figures": _key_figures(comparison, row),
        "table": _table(comparison, shown, evaluation.method),
        "skipped": [(line(n), clean(why)) for n, why in comparison.skipped.items()],
        "budget": shown.budget,
        "unit": shown.unit,
        "family": shown.family,
        "kl": comparison.measure == "kl",
        "curves": _curves(evaluation),
        "pairs": _pairs(evaluation),
        "examples": _examples(evaluation),
        "harness": [_harness_row(row) for row in evaluation.harness],
        "health": _health(evaluation.health),
        "excluded": [(line(reason, 300), count(n)) for reason, n in evaluation.excluded.items()],
        "settings": tree(_settings(evaluation)),
        "command": _command(evaluation.settings.get("command")),
    }


def status(row: ComparisonRow) -> str:
    """``"good"``, ``"bad"``, ``"open"`` or ``"dear"``.

    ``"open"``: wherever it is not better, the control leaves too little room for the test to tell.
    ``"dear"``: better than its controls, but over the budget.
    """
    lost = [test for test in row.against.values() if not test.beats()]
    if lost or not row.against:
        return "open" if lost and not any(test.can_tell() for test in lost) else "bad"
    return "good" if row.within else "dear"


def _key_figures(comparison: Comparison, row: ComparisonRow) -> list[tuple[str, str, str]]:
    """Label, figure, remark."""
    score = f"95 % interval {number(row.score.low)} to {number(row.score.high)}"
    figures = [("score", number(row.score.mean), score)]
    for name, test in row.against.items():
        d = test.difference
        p = equals(p_value(test)).replace(" ", "\u00a0")
        remark = f"{signed_number(d.low)} to {signed_number(d.high)}, p\u00a0{p}"
        figures.append((f"against {line(name)}", signed_number(d.mean), remark))
    cost = f"of a budget of {setting(comparison.budget)} {unit(comparison.measure)}"
    cost += "" if row.within else ", which it breaks"
    figures.append(("divergence", number(row.divergence), cost))
    test = next(iter(row.against.values()))
    ties = test.items - test.wins - test.losses
    remark = f"and {count(test.losses)} worse, {count(ties)} the same"
    figures.append((f"of {count(test.items)} items better", count(test.wins), remark))
    return figures


def _table(comparison: Comparison, shown: ControlsTable, method: str) -> dict[str, Any]:
    scores = [x for row in comparison.rows for x in row.score if math.isfinite(x)] or [0.0]
    low, span = min(scores), (max(scores) - min(scores)) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2) if math.isfinite(value) else 0.0

    base = next((place(row.score.mean) for row in comparison.rows if row.kind == "none"), None)
    rows = []
    for row, cells in zip(comparison.rows, shown.lines):
        mean, _, interval = cells.score.partition(" ")
        rows.append(
            cells._asdict()
            | {
                "name": line(row.name),
                "kind": KINDS.get(row.kind, line(row.kind)),
                "default": row.name == method,
                "mean": mean,
                "interval": interval,
                "bar": [place(row.score.low), place(row.score.mean), place(row.score.high)],
                "tests": [
                    None if cell is None else cell._asdict() | _sure(row.against[name])
                    for name, cell in zip(shown.controls, cells.tests)
                ],
            }
        )
    return {
        "rows": rows,
        "prices": [line(name) for name in shown.prices],
        "controls": [line(name) for name in shown.controls],
        "base": base,
        "over": any(not row.within for row in comparison.rows),
        "worse": any(test["worse"] for row in rows for test in row["tests"] if test),
    }


def _sure(test: PairedTest) -> dict[str, bool]:
    """Whether the method is surely higher, and whether it is lower by the same rule."""
    turned = replace(test, difference=Interval(*(-x for x in test.difference)))
    return {"beats": test.beats(), "worse": turned.beats()}


def _curves(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The curve's points as rows of a table."""
    return [
        {
            "name": line(name),
            "points": [
                (setting(p.strength), number(p.divergence), number(p.score)) for p in points
            ],
        }
        for name, points in evaluation.curves.items()
        if points
    ]


def _pairs(evaluation: Evaluation) -> dict[str, Any] | None:
    """Chosen pairs first, then others whose effect was measured."""
    pairing = evaluation.pairing
    if pairing is None:
        return None
    effects = {(e, t): value for e, t, value in pairing.effects}
    chosen = {(p.expert_layer, p.target_layer): p.nats for p in pairing}
    rows = [(e, t, True, number(nats), effects.get((e, t))) for (e, t), nats in chosen.items()]
    for (e, t), value in effects.items():
        if (e, t) not in chosen:
            rows.append((e, t, False, number(pairing.entry(pairing.matrix, e, t)), value))
    return {
        "rule": clean(pairing.rule),
        "rows": [(*row[:4], signed_number(row[4])) for row in rows],
        "measured": bool(effects),
        "count": len(pairing),
    }


def _examples(evaluation: Evaluation) -> dict[str, Any]:
    """At most `SHOWN` of each outcome, evenly spread over the items: nothing is picked by hand."""
    examples = evaluation.examples
    by_outcome: dict[str, list[int]] = {outcome: [] for outcome in OUTCOMES}
    for i, example in enumerate(examples):
        by_outcome[example.outcome].append(i)
    shown = {outcome: _spread(indices) for outcome, indices in by_outcome.items()}
    counted = evaluation.outcomes or {name: len(found) for name, found in by_outcome.items()}
    totals = {outcome: counted.get(outcome, 0) for outcome in OUTCOMES}
    return {
        "kept": len(examples),
        "total": sum(totals.values()),
        "counts": {outcome: (len(shown[outcome]), totals[outcome]) for outcome in OUTCOMES},
        "items": [_example(examples[i], i) for i in sorted(sum(shown.values(), []))],
    }


def _spread(indices: Sequence[int]) -> list[int]:
    if len(indices) <= SHOWN:
        return list(indices)
    return [indices[i * len(indices) // SHOWN] for i in range(SHOWN)]


def _example(example: Answered, index: int) -> dict[str, Any]:
    expected = None if example.expected is None else excerpt(example.expected, ANSWER_LENGTH)
    return {
        "long": max(len(example.unsteered), len(example.steered)) > 80,
        "number": index + 1,
        "outcome": example.outcome,
        "prompt": excerpt(example.prompt, PROMPT_LENGTH),
        "expected": expected,
        "unsteered": excerpt(example.unsteered, ANSWER_LENGTH),
        "steered": excerpt(example.steered, ANSWER_LENGTH),
        "before": number(example.before),
        "after": number(example.after),
    }


def _harness_row(row: Mapping[str, Any]) -> dict[str, str]:
    words = {name: line(row.get(name)) for name in ("task", "metric", "filter")}
    return harness_cells(row) | words


def _health(health: Mapping[str, Any]) -> dict[str, Any] | None:
    """Warnings as sentences, the rest as it is."""
    if not health:
        return None
    warnings = health.get("warnings")
    several = isinstance(warnings, (list, tuple)) and all(isinstance(w, str) for w in warnings)
    # What is found wrong are the warnings again, for machines.
    told = ("warnings", "findings", "ok", "notes") if several else ()
    rest = {key: value for key, value in health.items() if key not in told}
    return {
        "warnings": [excerpt(w, 1000) for w in warnings] if several else [],
        "notes": [excerpt(n, 1000) for n in _sentences(health.get("notes"))] if several else [],
        "looked": several,
        "rest": tree(rest),
    }


def _sentences(given: Any) -> list[str]:
    return [x for x in given if isinstance(x, str)] if isinstance(given, (list, tuple)) else []


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    comparison = evaluation.comparison
    own = {
        "budget": f"{setting(comparison.budget)} {unit(comparison.measure)}",
        "seed of the comparison": comparison.seed,
        "random directions": len(comparison.random),
        "seconds of the comparison": round(comparison.seconds, 1),
    }
    return {k: v for k, v in evaluation.settings.items() if k != "command"} | own


def _command(command: Any) -> str | None:
    if isinstance(command, (list, tuple)):
        return clean(shlex.join(map(str, command)))
    return clean(command) if command else None
