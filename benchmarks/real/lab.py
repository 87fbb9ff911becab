"""Models, captures and prices of the study, each kept for as long as cells need it."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import expertsteer as es
from benchmarks.real.tasks import TASKS, RealTask
from benchmarks.real.tasks.neutral import NEUTRAL
from expertsteer.calibration.calibrating import Searching
from expertsteer.calibration.divergence import neutral_texts
from expertsteer.evaluation.equal_price import EqualPrice
from expertsteer.evaluation.methods import Fitting
from expertsteer.models.loading import load
from expertsteer.states.states import HiddenStates
from expertsteer.tasks import TaskOnModel

DEPTHS = (0.3, 0.45, 0.65, 0.8)  # of the target's layers that are tried, one at a time
BASE = "qwen-0.5b"  # what contrasts of two models take from the expert
PASSES, TOLERANCE = 8, 0.1  # of the search for a strength; what it costs is measured afterwards
BATCH = 32


class Lab:
    """An expert and a target, and what has been made of them.

    ``models`` is the folder that has both by name, ``captures`` is where states are kept.
    """

    def __init__(self, models: Path, captures: Path, expert: str, target: str, budget: float):
        self.models, self.captures = models, captures
        self.expert, self.target, self.budget = expert, target, budget
        self._ready: tuple[str, Ready] | None = None
        self._context: tuple[tuple[str, int], Context] | None = None

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """The target and its tokenizer."""
        return self.load(self.target)

    def load(self, name: str) -> tuple[Any, Any]:
        return load(self.models / name, device="cpu", dtype=torch.bfloat16)

    def ready(self, name: str) -> Ready:
        """A task on the target; one is kept."""
        if self._ready is None or self._ready[0] != name:
            self._ready = None
            self._ready = name, Ready.of(*self.model, TASKS[name], self.budget)
        return self._ready[1]

    def context(self, task: str, seed: int) -> Context:
        """What the vectors of a fitting set are made from; one is kept."""
        if self._context is None or self._context[0] != (task, seed):
            self._context = None
            ready = self.ready(task)
            self._context = (task, seed), Context(self, ready, seed)
        return self._context[1]

    def states(self, task: RealTask, seed: int, name: str) -> HiddenStates:
        """Of a model on a fitting set, from the folder of captures once they are there."""
        contrast = task.contrast(seed)
        digest = hashlib.sha256("\n".join(contrast.texts).encode()).hexdigest()[:12]
        folder = self.captures / f"{task.name}-{seed}-{name}-{digest}"
        if folder.is_dir():
            return HiddenStates.from_pretrained(folder)
        loaded = self.model if name == self.target else self.load(name)
        captured = es.capture(*loaded, contrast, progress=False)
        captured.save_pretrained(folder)
        del loaded
        gc.collect()  # an expert takes gigabytes
        return captured


class Scores:
    """A task's scores as `compare` wants them; ``last`` are the latest ones."""

    def __init__(self, on: TaskOnModel):
        self.on, self.last = on, torch.zeros(0, 2)

    def __call__(self, split: str, prompt: str) -> Tensor:
        self.last = self.on.score(split, prompt)
        return self.last

    def probability(self, prompt: str) -> float:
        """Mean share of the wanted continuation in what was scored last."""
        return float(self.last[:, 1].mean())


@dataclass(frozen=True)
class Ready:
    """A task on the target, with everything that is the same for its methods."""

    task: RealTask
    equal_price: EqualPrice
    tokenizer: Any
    layers: tuple[int, ...]
    budget: float

    @classmethod
    def of(cls, model: Any, tokenizer: Any, task: RealTask, budget: float) -> Ready:
        scores = Scores(task.items().on(model, tokenizer, batch_size=BATCH, progress=False))
        halves = [neutral_texts(model, NEUTRAL[i::2], tokenizer) for i in (0, 1)]
        searching = Searching(budget, PASSES, tolerance=TOLERANCE)
        prices = {"probability": scores.probability}
        equal_price = EqualPrice(model, scores, "kl", *halves, searching, BATCH, prices)
        count = model.config.num_hidden_layers
        layers = tuple(dict.fromkeys(round(depth * (count - 1)) for depth in DEPTHS))
        return cls(task, equal_price, tokenizer, layers, budget)

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """What validation chooses among."""
        return [(layer,) for layer in self.layers]


def of_layers(states: HiddenStates, layers: Sequence[int]) -> HiddenStates:
    """Some layers of a capture."""
    rows = [states.layers.index(layer) for layer in layers]
    return replace(states, states=states.states[rows], layers=tuple(layers))


class Context:
    """Both captures of a fitting set; methods make their vectors from it.

    ``seed`` is that of the fitting set, of shuffled labels and of the fits. The target has the
    layers that are tried, the expert has all.
    """

    def __init__(self, lab: Lab, ready: Ready, seed: int):
        self.lab, self.ready, self.seed = lab, ready, seed
        self.figures: dict[str, Any] = {}  # what a method tells beside its rows

    def states(self, name: str) -> HiddenStates:
        return self.lab.states(self.ready.task, self.seed, name)

    @property
    def last_layer(self) -> int:
        return self.lab.model[0].config.num_hidden_layers - 1

    @cached_property
    def expert(self) -> HiddenStates:
        return self.states(self.lab.expert)

    @cached_property
    def whole_target(self) -> HiddenStates:
        """The target at all of its layers."""
        return self.states(self.lab.target)

    @cached_property
    def target(self) -> HiddenStates:
        return of_layers(self.whole_target, self.ready.layers)

    @cached_property
    def fitting(self) -> Fitting:
        return Fitting(self.expert, self.target, len(self.ready.layers), seed=self.seed)

    @cached_property
    def information(self) -> Tensor:
        return es.mutual_information(self.expert, self.target)
