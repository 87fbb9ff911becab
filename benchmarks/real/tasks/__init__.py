"""Six tasks for real models, made from lists and rules written here, the same on every machine."""

from __future__ import annotations

from benchmarks.real.tasks.behaviour import formal_rows, sentiment_rows
from benchmarks.real.tasks.claims import claim_rows
from benchmarks.real.tasks.facts import fact_rows
from benchmarks.real.tasks.sums import python_rows, sum_rows
from benchmarks.real.tasks.task import RealTask

__all__ = ["TASKS", "RealTask"]

TASKS = {
    task.name: task
    for task in (
        RealTask("sentiment", "a good review rather than a bad one", sentiment_rows),
        RealTask("arithmetic", "the right sum or difference of two numbers", sum_rows),
        RealTask("formal", "formal words rather than everyday ones", formal_rows),
        RealTask("facts", "the right one of two answers about the world", fact_rows),
        RealTask("python", "the value of a Python expression", python_rows),
        RealTask("claims", "the right verdict about a true or false claim", claim_rows),
    )
}
