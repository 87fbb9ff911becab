"""What the benchmark of other tools compares before it times; nothing here imports expertsteer."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from benchmarks.registry import Case, Gate, benchmark
from benchmarks.steering import cases
from benchmarks.steering.cases import Steered


@contextmanager
def plain_hook(model, deltas):
    """Stands in for a tool where none is installed."""
    with cases.hooks(model, deltas):
        yield model.generate


@benchmark(
    "steering.peer",
    gate=Gate(
        "tokens and logits of another tool with a plain hook's",
        cases.TOLERANCE,
        cases.decoded_off,
        "of the largest logit",
    ),
    smallest={"tool": plain_hook, "width": 64, "batch": 1, "layers": "1", "new": 3},
)
def PEER(stack, tool, width, batch, layers, new) -> Case:
    """Whole decodes beside the unsteered model and a plain hook."""
    stack.enter_context(torch.inference_mode())
    model, ids = cases.llama(width), cases.prompt(batch)
    deltas = cases.displacements(width, cases.LAYERS[layers])
    hooked, theirs = cases.twin(model), cases.twin(model)
    stack.enter_context(cases.hooks(hooked, deltas))
    generate = stack.enter_context(tool(theirs, deltas))
    settings = cases.settings(ids, new)
    tokens, logits = cases.decoded(hooked.generate(ids, **settings, **cases.FULL))
    works = {
        "unsteered": lambda: cases.decode(model, ids, new),
        "python hook": lambda: cases.decode(hooked, ids, new),
        "peer": lambda: generate(ids, **settings),
    }
    found = {"peer": cases.decoded(generate(ids, **settings, **cases.FULL))}
    return Case(works, found, (tokens, Steered(logits)), ("unsteered", "python hook"))
