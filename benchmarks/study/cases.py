"""The cells of the study: what is fitted and measured in each.

A cell is one task, one expert, one set of training examples. Everything in it is measured as
`compare` does: at one divergence on neutral text, chosen on validation, reported on test.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import expertsteer as es
from benchmarks.study.experts import expert as load_expert
from benchmarks.study.results import Cell, listed
from benchmarks.study.tasks import Task, demo_contexts, demo_task, stories_task
from expertsteer.calibration.calibrating import Searching
from expertsteer.calibration.divergence import neutral_texts
from expertsteer.evaluation.comparing import compare
from expertsteer.evaluation.equal_price import EqualPrice
from expertsteer.evaluation.methods import METHODS, OWN, PAPER
from expertsteer.pairing.layer_pairs import LayerPairing
from expertsteer.states.in_memory import capture
from expertsteer.states.states import HiddenStates
from expertsteer.vectors.vectors import SteeringVectors

# Nats per token, below where the best methods give nearly all answers and cannot be told apart.
BUDGETS = {"demo": 0.01, "early": 0.01, "stories": 0.1}
NOISE = 0.2  # of the noised copy: share of every weight matrix's standard deviation
BATCH = 128
HABIT = {"bandwidth": 1.0, "reg": 1e-3, "iters": 5}  # the field's usual RFM settings


class Lab:
    """Models and captures, kept while cells need them."""

    def __init__(self, cache: Path, stories: Path | None = None):
        self.cache, self.stories = cache, stories
        self._experts: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._captured: dict[tuple, HiddenStates] = {}

    @cached_property
    def _demo(self) -> Task:
        return demo_task()

    @cached_property
    def _stories(self) -> Task:
        return stories_task(self.stories)

    @cached_property
    def _early(self) -> Task:
        return demo_task(*load_expert("early", self.cache), name="early")

    def task(self, name: str) -> Task:
        """``"demo"``, ``"early"`` (its world, a target trained for less) or ``"stories"``."""
        return getattr(self, f"_{name}")

    def expert(self, task: str, name: str) -> tuple[Any, Any]:
        if (task, name) not in self._experts:
            self._experts[task, name] = self._load(task, name)
        return self._experts[task, name]

    def _load(self, task: str, name: str) -> tuple[Any, Any]:
        if task != "stories":
            return load_expert(name, self.cache)
        copy = stories_task(self.stories)
        if name == "noised":
            add_noise(copy.model, NOISE)
        return copy.model, copy.tokenizer

    def states(self, cell: Cell, name: str) -> HiddenStates:
        """Of ``"target"`` or of an expert on the cell's contrast set."""
        key = (cell.task, cell.size, cell.seed, name)
        if key not in self._captured:
            task = self.task(cell.task)
            own = name in ("target", "itself")
            model = (task.model, task.tokenizer) if own else self.expert(cell.task, name)
            contrast = task.contrast(cell.size, cell.seed)
            self._captured = {k: v for k, v in self._captured.items() if k[:3] == key[:3]}
            self._captured[key] = capture(*model, contrast, progress=False)
        return self._captured[key]

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's line: its own entries, rows in the order of `COLUMNS`, processor seconds."""
        started = time.process_time()
        measure = MEASURES[cell.kind]
        found = measure(self, cell)
        seconds = round(time.process_time() - started, 1)
        return asdict(cell) | found | {"seconds": seconds}


def add_noise(model: Any, share: float) -> None:
    """Blur every weight matrix by noise of this share of its standard deviation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight += share * weight.std() * noise


def table(
    lab: Lab,
    cell: Cell,
    random: int = 1,
    methods: Iterable[str] = METHODS,
    singles: bool = True,
) -> dict:
    """Every method, at all layers together and at each layer by itself."""
    task = lab.task(cell.task)
    subsets = [list(range(task.layers))]
    subsets += [[layer] for layer in range(task.layers)] if singles else []
    comparison = compare(
        task.model,
        lab.states(cell, cell.expert),
        lab.states(cell, "target"),
        task.score,
        task.neutral,
        task.tokenizer,
        budget=cell.budget,
        methods=list(methods),
        random=random,
        layers=subsets,
        prices={"probability": lambda prompt: float(task.score("test")[:, 1].mean())},
        seed=cell.seed,
        batch_size=BATCH,
        progress=False,
    )
    rows = [row for row in comparison.rows if not row.name.startswith("random directions")]
    return {
        "rows": [
            listed(
                name=row.name,
                layers=list(row.layers),
                strength=row.strength,
                divergence=row.divergence,
                validation=row.validation,
                accuracy=row.score.mean,
                probability=row.prices["probability"],
            )
            for row in (*rows, *comparison.random)
        ]
    }


def random_table(lab: Lab, cell: Cell) -> dict:
    """Random directions do not depend on the training examples, but for the layers' scales: many
    of them once serve every cell. ``size`` is how many, the examples are 200."""
    examples = Cell("table", cell.task, cell.expert, 200, cell.seed, cell.budget)
    return table(lab, examples, cell.size, [next(iter(OWN))])


def joint_table(lab: Lab, cell: Cell) -> dict:
    """All layers together and nothing else: what is steered where nobody chooses."""
    return table(lab, cell, 1, (*OWN, PAPER), singles=False)


def pairs(lab: Lab, cell: Cell) -> dict:
    """Every layer pair by itself (Procrustes, RFM); further alignments and vectors on the pairs
    that the lowest information gives every target layer; the target's own vectors."""
    task = lab.task(cell.task)
    expert, target = lab.states(cell, cell.expert), lab.states(cell, "target")
    halves = [neutral_texts(task.model, task.neutral[i::2], task.tokenizer) for i in (0, 1)]
    searching = Searching(cell.budget)
    equal_price = EqualPrice(task.model, task.score, "kl", *halves, searching, BATCH, {})
    nats = es.mutual_information(expert.states, target.states)
    count = len(target.layers)
    lowest = es.pair_layers(nats, count, expert_layers=expert.layers, target_layers=target.layers)
    rows = []
    for name, pairing, vectors in _fitted(cell, expert, target, lowest):
        rows += _singles(equal_price, name, pairing, vectors)
    if cell.expert in ("bundled", "itself"):  # the same for every expert
        same = LayerPairing.same(target.layers)
        identity = es.align(target, target, "identity")
        for name, method in OWN.items():
            own = es.fit_vectors(target, target, identity, same, method, seed=cell.seed)
            rows += _singles(equal_price, name, same, own)
    return {"nats": [[round(v, 3) for v in row] for row in nats.tolist()], "rows": rows}


def _fitted(
    cell: Cell, expert: HiddenStates, target: HiddenStates, lowest: LayerPairing
) -> Iterator[tuple[str, LayerPairing, SteeringVectors]]:
    procrustes, ridge = es.align(expert, target), es.align(expert, target, "ridge")

    def fit(alignment, pairing, method="rfm", **options):
        return es.fit_vectors(expert, target, alignment, pairing, method, seed=cell.seed, **options)

    for layer in expert.layers:
        pairing = LayerPairing(tuple((layer, t, float("nan")) for t in target.layers))
        yield "procrustes, rfm", pairing, fit(procrustes, pairing)
    yield "ridge, rfm", lowest, fit(ridge, lowest)
    if cell.task != "stories":  # a cell of the stories takes three times as long
        yield "procrustes, rfm of habit", lowest, fit(procrustes, lowest, rfm=es.RFM(**HABIT))
        yield "procrustes, mean difference", lowest, fit(procrustes, lowest, "mean_difference")
        yield "ridge, mean difference", lowest, fit(ridge, lowest, "mean_difference")
    bare = es.align(expert, target, rotation="none")
    yield "bare, rfm", lowest, fit(bare, lowest)
    if expert.width == target.width:
        identity = es.align(expert, target, "identity")
        yield "identity, rfm", lowest, fit(identity, lowest)
        if expert.layers == target.layers and cell.expert != "itself":  # those are its own
            same = LayerPairing.same(target.layers)
            yield "identity, rfm, same layers", same, fit(identity, same)


def _singles(
    equal_price: EqualPrice, name: str, pairing: LayerPairing, vectors: SteeringVectors
) -> list:
    """One row per target layer, each at the strength that costs the budget."""
    figures, rows = vectors.metadata["figures"], []
    for i, pair in enumerate(pairing):
        chosen = equal_price.choose([vectors], [(pair.target_layer,)])
        if chosen is None:  # no strength keeps the budget
            continue
        with equal_price.steered(chosen) as divergence:
            accuracy, probability = equal_price.score("test", "").mean(dim=0).tolist()
        auc, explained = (figures.get(n) for n in ("validation_auc", "explained_variance"))
        rows.append(
            listed(
                name=name,
                expert_layer=pair.expert_layer,
                layers=[pair.target_layer],
                strength=chosen.strength,
                divergence=divergence,
                validation=chosen.rank[0],
                validation_probability=chosen.rank[1],
                accuracy=accuracy,
                probability=probability,
                auc=None if auc is None else auc[i],
                explained=None if explained is None else explained[i],
            )
        )
    return rows


def knowledge(lab: Lab, cell: Cell) -> dict:
    """How often an expert of the demo, or the target, gives the coast's answers, unsteered."""
    task = lab.task("demo")
    own = cell.expert == "target"
    model, tokenizer = (task.model, task.tokenizer) if own else lab.expert(cell.task, cell.expert)
    rows = []
    for name, items in demo_contexts(tokenizer).items():
        beliefs = items.beliefs(model)
        right = float((beliefs.argmax(dim=1) == 0).double().mean())
        rows.append(listed(name=name, accuracy=right, probability=float(beliefs[:, 0].mean())))
    return {"rows": rows}


MEASURES = {
    "table": table,
    "joint": joint_table,
    "random": random_table,
    "pairs": pairs,
    "expert": knowledge,
}
