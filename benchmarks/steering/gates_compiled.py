"""What the benchmark of compiled decoding steps compares before it times."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import StaticCache

from benchmarks.registry import ByWork, Case, benchmark, called
from benchmarks.steering import cases
from benchmarks.steering.cases import AGAIN, Steered
from benchmarks.steering.gates import ALL, SMALL, UNSTEERED, after_prompt, gate, turned


@benchmark(
    "steering.compiled",
    gate=gate("logits of a compiled step"),
    smallest=SMALL | {"backend": "eager"},
)
def COMPILED(stack, width, batch, turn=0, backend="inductor") -> Case:
    """One step over a static cache, all layers steered, compiled anew for every tool."""
    stack.enter_context(torch.inference_mode())
    model, works = cases.llama(width), {}
    deltas = cases.displacements(width, cases.LAYERS[ALL])
    tools = [UNSTEERED, (AGAIN, "0"), *((tool, ALL) for tool in ("fold", "slot", "bare addition"))]
    torch.compiler.reset()
    for tool, name in turned(tools, turn):
        own = cases.twin(model)
        if tool == "bare addition":
            stack.enter_context(bare_additions(own, deltas))
        elif name == ALL:
            stack.enter_context(cases.steered(tool, own, deltas))
        works[tool, name] = compiled_step(own, cases.prompt(batch), backend)
    steered, plain = (cases.twin(model) for _ in range(2))
    stack.enter_context(cases.hooks(steered, deltas))
    hooked, unsteered = (own(**after_prompt(own, batch)[1]).logits for own in (steered, plain))
    expected = ByWork(
        {key: Steered(hooked, unsteered) if key[1] == ALL else Steered(unsteered) for key in works}
    )
    return Case(works, expected=expected, **called(works, torch.clone))


@contextmanager
def bare_additions(model, deltas: dict):
    """``layer(...) + constant`` and nothing else: what any addition costs in a compiled step."""

    def adding(forward, delta):
        return lambda *args, **kwargs: forward(*args, **kwargs) + delta

    layers = model.model.layers
    for index, delta in deltas.items():
        layers[index].forward = adding(layers[index].forward, delta)
    try:
        yield
    finally:
        for index in deltas:
            del layers[index].forward


def compiled_step(model, ids: Tensor, backend: str):
    """A call that runs one compiled step after the prompt, at the same place each time."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(ids, **{cases.cache_name(model): cache})
    start = {
        id(layer): layer.cumulative_length.clone()
        for layer in cache.layers
        if torch.is_tensor(getattr(layer, "cumulative_length", None))
    }
    run = cases.compiled_step(model, backend)

    def call():
        for layer in cache.layers:
            if id(layer) in start:
                layer.cumulative_length.copy_(start[id(layer)])
        return run(ids[:, -1:], cache)

    return call
