"""Tasks of lm-evaluation-harness on the live model, without and with steering.

Needs the ``eval`` extra.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from ..models.decoder import unwrapped
from ..models.encoding import text_tokenizer
from ..models.forward import evaluating
from ..steering.steering import attach
from ..support.paths import local_path
from ..support.progress import quietable, shown
from ..vectors.vectors import SteeringVectors
from .live_harness import live_harness
from .statistics import PairedTest, paired_test


@dataclass(frozen=True)
class HarnessRow:
    """One metric of one task.

    Attributes:
        task, metric, filter: as the harness names them; higher_is_better: where it says so.
        items: how many were measured.
        unsteered, steered: value and standard error (``None`` where the harness gives none).
        test: steered against unsteered over the same items; ``None`` without one value per item.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    items: int
    unsteered: tuple[float, float | None]
    steered: tuple[float, float | None]
    test: PairedTest | None = None

    def to_dict(self) -> dict[str, Any]:
        """Json values; each side as ``value`` and ``stderr``."""
        sides = {
            side: dict(zip(("value", "stderr"), getattr(self, side)))
            for side in ("unsteered", "steered")
        }
        return asdict(self) | sides | {"test": None if self.test is None else self.test.to_dict()}


@quietable
def evaluate_lm_eval(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    vectors: SteeringVectors,
    *,
    strength: float | str = "auto",
    positions: str = "all",
    include_path: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    batch_size: int = 8,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    decoder_layers: str | None = None,
    progress: bool = True,
    **options: Any,
) -> list[HarnessRow]:
    """Run lm-eval tasks on a model as it is and steered, through the harness's ``HFLM``.

    Args:
        model, tokenizer: the target, not steered yet; both come back as they were.
        tasks: names of the harness, or of the task files in ``include_path``.
        vectors, strength, positions, decoder_layers: see `attach`.
        include_path: folders of task files (yaml) of one's own.
        batch_size: sequences per forward pass.
        limit: items of each task: a number, or a share below 1.
        num_fewshot: examples before each item, by default as the task says.
        max_length: of a sequence, by default the model's context.
        seed: of few-shot examples and of everything else the harness draws.
        options: further ones of ``lm_eval.simple_evaluate``.

    Returns:
        One row for each metric and filter, in the order of the tasks.

    Raises:
        ValueError: lm-eval is not installed, an unknown task, a task without metrics; see `attach`.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, came {batch_size!r}")
    model, tokenizer = unwrapped(model), text_tokenizer(tokenizer)
    names, manager = require_tasks(tasks, include_path, limit)
    seeds = {f"{name}_random_seed": seed for name in ("numpy", "torch", "fewshot")}
    settings = {"limit": limit, "num_fewshot": num_fewshot, "random_seed": seed} | seeds | options

    def run(harness: Any) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        _ask_nothing()
        return simple_evaluate(harness, tasks=names, task_manager=manager, **settings)

    attached = {"strength": strength, "positions": positions, "decoder_layers": decoder_layers}
    with attach(model, vectors, **attached):
        pass  # what cannot be attached is refused now, not after the unsteered run
    with evaluating(model), _restored(tokenizer):
        harness = live_harness(
            model, tokenizer, batch_size, max_length, plain=positions == "all", progress=shown()
        )
        before = run(harness)
        with attach(model, vectors, **attached) as steering:
            harness.steering = steering
            after = run(harness)
    rows = list(_rows(before, after, seed))
    if not rows:
        raise ValueError(f"tasks: {names} gave no metric; choose tasks that score something")
    return rows


def _ask_nothing() -> None:
    """Releases of datasets before 4 ask on standard input whether to run a data set's code."""
    from datasets import config

    if getattr(config, "HF_DATASETS_TRUST_REMOTE_CODE", False) is None:
        config.HF_DATASETS_TRUST_REMOTE_CODE = False


def require_tasks(
    tasks: Sequence[str], include_path: Any = None, limit: Any = None
) -> tuple[list[str], Any]:
    """The names of tasks and the harness's manager that knows them all.

    The harness's own tasks, thousands of files, are read only where they are needed.

    Raises:
        ValueError: lm-eval is not installed, no such task, folder or limit.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("lm-eval tasks need lm-eval: pip install 'expertsteer[eval]'")
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"tasks must name at least one lm-eval task, came {tasks!r}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be a number of items, or a share below 1, came {limit!r}")
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        single = isinstance(include_path, (str, os.PathLike))
        given = [include_path] if single else list(include_path)
        folders = [os.fspath(local_path(folder, "include_path")) for folder in given]
        missing = [str(folder) for folder in folders if not os.path.isdir(folder)]
        if missing:
            raise ValueError(f"include_path: there is no folder {missing[0]!r}")
        manager = TaskManager(include_path=folders, include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return names, manager
        manager = TaskManager(include_path=folders)
    else:
        manager = TaskManager()
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ValueError(
            f"tasks: lm-eval knows no task {unknown[0]!r}; give the folder of a task file of your "
            "own as include_path, or see `lm-eval ls tasks`"
        )
    return names, manager


def _rows(before: dict, after: dict, seed: int) -> Iterator[HarnessRow]:
    for task, values in before["results"].items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _number(value):
                continue
            counted = before.get("n-samples", {}).get(task, {}).get("effective", 0)
            better = before.get("higher_is_better", {}).get(task, {}).get(metric)
            yield HarnessRow(
                task,
                metric,
                chosen,
                better,
                counted,
                *(_with_error(run["results"][task], key) for run in (before, after)),
                _paired(before, after, task, metric, chosen, seed),
            )


def _with_error(values: dict[str, Any], key: str) -> tuple[float, float | None]:
    metric, _, chosen = key.partition(",")
    error = values.get(f"{metric}_stderr,{chosen}")
    return float(values[key]), float(error) if _number(error) else None


def _paired(before: dict, after: dict, task: str, metric: str, chosen: str, seed: int):
    """A test over the items, where the harness kept one number for each."""
    columns = []
    for run in (before, after):
        samples = [s for s in run.get("samples", {}).get(task, []) if s.get("filter") == chosen]
        column = {s["doc_id"]: s.get(metric) for s in samples}
        columns.append(column)
    first, second = columns
    if len(first) < 2 or first.keys() != second.keys():
        return None
    pairs = [(second[i], first[i]) for i in first]
    if not all(_number(a) and _number(b) for a, b in pairs):
        return None
    steered, unsteered = ([float(v) for v in column] for column in zip(*pairs))
    return paired_test(steered, unsteered, seed=seed)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


@contextmanager
def _restored(tokenizer: Any) -> Iterator[None]:
    """What the harness sets on a tokenizer, put back."""
    names = ("padding_side", "pad_token", "truncation_side")
    values = {name: getattr(tokenizer, name, None) for name in names}
    try:
        yield
    finally:
        for name, value in values.items():
            if getattr(tokenizer, name, None) != value:
                setattr(tokenizer, name, value)
