"""Tasks: what steering is supposed to improve, from a file of one's own.

A task knows its items and how they are scored. `Task.on` makes it ready for one model: the items
are split, those that the model cannot read are left out and counted, and what comes back offers
``score(split, prompt)`` as `compare` wants it.
"""

from __future__ import annotations

import os
from typing import Any

from .choices import MultipleChoice, NextToken
from .rows import TaskError, texts_of_file
from .task import Task, TaskOnModel
from .texts import Generation, Perplexity

__all__ = [
    "TASKS",
    "Generation",
    "MultipleChoice",
    "NextToken",
    "Perplexity",
    "Task",
    "TaskError",
    "TaskOnModel",
    "load_task",
]

TASKS = {
    "choice": MultipleChoice,
    "next-token": NextToken,
    "generation": Generation,
    "perplexity": Perplexity,
}


def load_task(path: str | os.PathLike, kind: str = "choice", **options: Any) -> Task:
    """A task of a kind by name: ``"choice"``, ``"next-token"``, ``"generation"``, ``"perplexity"``.

    A perplexity task may also be a text file (``.txt``) of one text a line.

    Raises:
        TaskError: an unknown kind, no such file, or what `tasks.Task.from_jsonl` raises.
    """
    if kind not in TASKS:
        raise TaskError(f"kind must be one of {tuple(TASKS)}, came {kind!r}")
    if kind == "perplexity" and str(path).endswith(".txt"):
        return Perplexity.from_texts(texts_of_file(path), str(path), **options)
    return TASKS[kind].from_jsonl(path, **options)
