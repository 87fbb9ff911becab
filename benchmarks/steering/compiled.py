"""Compiled decoding steps, timed as `inject_runs` times the others."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import StaticCache

from benchmarks.steering import cases, runs


@torch.inference_mode()
def compiled(
    width: int, batch: int, budget: float, backend: str = "inductor", repeats: int = 5
) -> list[dict]:
    """One compiled decoding step over a static cache, all layers steered; see `whole_steps`."""
    taken = [
        _compiled_once(width, batch, budget / repeats, turn, backend) for turn in range(repeats)
    ]
    return runs.with_each(runs.ratios(runs.pooled(taken), {"hidden": width, "batch": batch}), taken)


def _compiled_once(
    width: int, batch: int, budget: float, turn: int, backend: str
) -> dict[tuple, list[float]]:
    """Seconds of every tool's step, compiled anew and checked against a hook's."""
    model, timed, outputs = cases.llama(width), {}, {}
    deltas = cases.displacements(width, cases.LAYERS["all 16"])
    ids, steered = cases.prompt(batch), "all 16"
    tools = [("unsteered", "0"), (runs.AGAIN, "0")]
    tools += [(tool, steered) for tool in ("fold", "slot", "bare addition")]
    torch.compiler.reset()
    with ExitStack() as stack:
        for tool, name in runs.turned(tools, turn):
            own = cases.twin(model)
            if tool == "bare addition":
                stack.enter_context(_bare_additions(own, deltas))
            elif name == steered:
                stack.enter_context(cases.steered(tool, own, deltas))
            timed[tool, name], outputs[tool, name] = _compiled_step(own, ids, backend)
        eager = cases.twin(model)
        stack.enter_context(cases.hooks(eager, deltas))
        expected = eager(**runs.after_prompt(eager, batch)[1]).logits
        for (tool, name), found in outputs.items():
            if name == steered:
                runs.require_near(found, expected, f"compiled {tool}")
        return cases.interleave(timed, budget)


@contextmanager
def _bare_additions(model, deltas: dict):
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


def _compiled_step(model, ids: Tensor, backend: str):
    """A call that runs one compiled step after the prompt, and its logits."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(ids, **{cases.cache_name(model): cache})
    start = {
        id(layer): layer.cumulative_length.clone()
        for layer in cache.layers
        if torch.is_tensor(getattr(layer, "cumulative_length", None))
    }
    run = cases.compiled_step(model, backend)

    def call():
        for layer in cache.layers:  # the same place each time
            if id(layer) in start:
                layer.cumulative_length.copy_(start[id(layer)])
        return run(ids[:, -1:], cache)

    return call, call().clone()
