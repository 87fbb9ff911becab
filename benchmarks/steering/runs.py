"""The measurements of injection: each checks its outputs first, then times tools in rounds.

Every function gives rows for the tables of ``table_inject.py``. A check that fails ends the run.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

import expertsteer as es
from benchmarks.steering import cases
from expertsteer.steering.decoder_slot import OpenPass
from expertsteer.steering.prompt import Prompt
from expertsteer.steering.state import OpenPass

AGAIN = "unsteered, again"  # other modules on the same weights: what is noise


def require(right: bool, what: str) -> None:
    if not right:
        sys.exit(f"{what}; no speed is reported")


def require_near(found: Tensor, expected: Tensor, what: str) -> float:
    error = cases.difference(found, expected)
    require(error <= cases.TOLERANCE, f"{what}: off by {error:.1e} of the largest logit")
    return error


@torch.inference_mode()
def layer_calls(width: int, budget: float, calls: int = 1000) -> list[dict]:
    """A layer that does nothing, called alone inside an open pass: microseconds per call."""
    tiny = 1e-9  # the same state is steered millions of times
    deltas = {i: tiny * d for i, d in cases.displacements(width, cases.LAYERS["all 16"]).items()}
    hidden = torch.randn(1, 1, width)
    timed = {}
    with ExitStack() as stack:
        for tool in ("unsteered", "python hook", "hook, in place", "slot", "slot, mask and rows"):
            model = cases.hollow(width)
            if "hook" in tool:
                stack.enter_context(cases.hooks(model, deltas, "in place" in tool))
            elif "slot" in tool:
                steering = stack.enter_context(cases.attached(model, deltas, "slot"))
                if "rows" in tool:
                    steering.set_rows([0])
                chosen = torch.ones(1, 1, dtype=torch.bool) if "mask" in tool else True
                stack.callback(OpenPass(steering, chosen, (1, 1)).close)
            layer = model.model.layers[8]
            given = torch.zeros(1, 1, width)
            expected = torch.zeros(1, 1, width) if tool == "unsteered" else deltas[8]
            require(bool((layer(given) == expected).all()), f"{tool} adds something else")

            def call(layer=layer):
                for _ in range(calls):
                    layer(hidden)

            timed[tool] = call
        taken = cases.interleave(timed, budget)
    base = taken.pop("unsteered")
    return [
        {"hidden": width, "tool": tool, "added_us": cases.added(own, base, calls)}
        for tool, own in taken.items()
    ] + [
        {"hidden": width, "tool": "unsteered", "us": cases.middle([1e6 * s / calls for s in base])}
    ]


@torch.inference_mode()
def passes(width: int, batch: int, budget: float) -> list[dict]:
    """One decoding step through 16 layers that do nothing: the slots and what opens the pass.

    The tools steer as inside ``generate`` after a prompt; ``"generated"`` also chooses positions,
    and rows for each sequence.
    """
    ids, step = after_prompt(cases.llama(width), batch)
    timed, outputs = {}, {}
    with ExitStack() as stack:
        for name, layers in cases.LAYERS.items():
            deltas = cases.displacements(width, layers)
            tools = ["python hook", "hook, in place", "slot", "slot, positions and rows"]
            for tool in tools if deltas else ["slot"]:
                model = cases.hollow(width)
                if "hook" in tool:
                    stack.enter_context(cases.hooks(model, deltas, "in place" in tool))
                else:
                    steering = stack.enter_context(cases.attached(model, deltas, "slot"))
                    mask = torch.ones_like(ids)
                    name_of_cache = cases.cache_name(model)
                    given = {"attention_mask": mask, name_of_cache: step[name_of_cache]}
                    prompt = Prompt.of_generate(model, (ids,), given)
                    stack.enter_context(steering.generating(prompt))
                    if "rows" in tool:
                        steering.set(positions="generated").set_rows([0] * batch)
                timed[tool, name] = lambda model=model: model.model(**step, use_cache=True)
                outputs[tool, name] = timed[tool, name]().last_hidden_state
        plain = cases.hollow(width)
        timed["unsteered", "0"] = lambda: plain.model(**step, use_cache=True)
        outputs["python hook", "0"] = timed["unsteered", "0"]().last_hidden_state
        for (tool, name), found in outputs.items():
            require_near(found, outputs["python hook", name], f"{tool} at {name} layers")
        taken = cases.interleave(timed, budget)
    base = taken.pop(("unsteered", "0"))
    case = {"hidden": width, "batch": batch, "unsteered_us": cases.middle([1e6 * s for s in base])}
    return [
        case
        | {
            "tool": tool,
            "layers": name,
            "added_us_per_step": cases.added(own, base, 1),
            "added_us_per_layer": cases.added(own, base, max(1, len(cases.LAYERS[name]))),
        }
        for (tool, name), own in taken.items()
    ]


def after_prompt(model, batch: int) -> tuple[Tensor, dict]:
    """The prompt, and the arguments of the decoding step that follows it."""
    ids = cases.prompt(batch)
    cache = DynamicCache(config=model.config)
    name = cases.cache_name(model)
    model(ids, **{name: cache})
    mask = torch.ones(batch, cases.PROMPT + 1, dtype=torch.long)
    return ids, {"input_ids": ids[:, -1:], name: cache, "attention_mask": mask}


@torch.inference_mode()
def thread_counts(width: int, batch: int, budget: float) -> list[dict]:
    """The unsteered step with one thread and with two, each after a warm-up of its own."""
    model, kept = cases.llama(width), torch.get_num_threads()
    _, step = after_prompt(model, batch)

    def call():
        model(**step)
        step[cases.cache_name(model)].crop(-1)

    row = {"hidden": width, "batch": batch}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            row[f"ms, {threads}"] = (
                1e3 * cases.middle(cases.interleave({"": call}, budget)[""])["median"]
            )
    finally:
        torch.set_num_threads(kept)
    return [row]


@torch.inference_mode()
def whole_steps(width: int, batch: int, budget: float, repeats: int = 5) -> list[dict]:
    """One decoding step of the real model with a cache; every tool on the same weights.

    Repeated with new modules, made in another order: where a model's objects lie in memory moves
    a figure by more than its rounds do. A second unsteered model shows by how much.
    """
    runs = [_steps_once(width, batch, budget / repeats, turn) for turn in range(repeats)]
    rows = ratios(pooled(runs), {"hidden": width, "batch": batch}, per="added_us_per_layer")
    return with_each(rows, runs)


def _steps_once(width: int, batch: int, budget: float, turn: int) -> dict[tuple, list[float]]:
    """Seconds of every tool's step, on modules of its own, after a check of its logits."""
    model, timed, outputs = cases.llama(width), {}, {}
    with ExitStack() as stack:
        for tool, name, own in _tools(model, stack, turn):
            _, step = after_prompt(own, batch)

            def call(own=own, step=step):
                found = own(**step).logits
                step[cases.cache_name(model)].crop(-1)
                return found

            timed[tool, name], outputs[tool, name] = call, call()
        _require_alike(outputs)
        return cases.interleave(timed, budget)


def pooled(runs: list[dict]) -> dict:
    return {key: sum((run[key] for run in runs), []) for key in runs[0]}


def with_each(rows: list[dict], runs: list[dict]) -> list[dict]:
    """The rows with the median ratio of every repetition by itself."""
    for row in rows:
        if "ratio" in row:
            key = row["tool"], row["layers"]
            ratios = [cases.ratio(run[key], run["unsteered", "0"]) for run in runs]
            row["each"] = [ratio["median"] for ratio in ratios]
    return rows


@torch.inference_mode()
def decodes(width: int, batch: int, budget: float) -> list[dict]:
    """Greedy ``generate`` after a prompt."""
    model, timed = cases.llama(width), {}
    ids, new = cases.prompt(batch), cases.NEW_TOKENS[width, batch]
    tokens, outputs = {}, {}
    with ExitStack() as stack:
        for tool, name, own in _tools(model, stack):
            timed[tool, name] = lambda own=own: cases.decode(own, ids, new)
            full = cases.decode(own, ids, new, return_dict_in_generate=True, output_logits=True)
            tokens[tool, name], outputs[tool, name] = full.sequences, torch.stack(full.logits)
        _require_alike(outputs)
        for (tool, name), found in tokens.items():
            like = ("unsteered", "0") if name == "0" else ("python hook", name)
            same = torch.equal(found, tokens[like])
            require(same, f"{tool} at {name} layers generates other tokens")
        taken = cases.interleave(timed, budget)
    case = {"hidden": width, "batch": batch, "new_tokens": new}
    rows = ratios(taken, case)
    for row in rows:
        seconds = cases.middle(taken[row["tool"], row["layers"]])["median"]
        row["tokens_per_s"] = batch * new / seconds
    return rows


def _tools(model, stack: ExitStack, turn: int = 0):
    """Twins of the model, each steered by one tool at some layers, while the stack is open."""
    unsteered = [("unsteered", "0"), (AGAIN, "0")]
    steered = [
        (tool, name)
        for name, layers in cases.LAYERS.items()
        for tool in (cases.OWN_TOOLS[1:] if layers else ("fold", "slot"))
    ]
    steered.append((cases.BIAS, "all 16"))
    for tool, name in turned([*unsteered, *steered], turn):
        own = cases.twin(model)
        if (tool, name) not in unsteered:
            deltas = cases.displacements(model.config.hidden_size, cases.LAYERS[name])
            stack.enter_context(cases.steered(tool, own, deltas))
        yield tool, name, own


def turned(tools: list, turn: int) -> list:
    """In another order each turn, so that in five turns none is always made first."""
    first = turn * len(tools) // 5 % len(tools)
    return tools[first:] + tools[:first]


def _require_alike(outputs: dict) -> None:
    """The same logits as the hook's; at strength 0 those of the unsteered model, to the bit."""
    unsteered = outputs["unsteered", "0"]
    for (tool, name), found in outputs.items():
        if name == "0":
            require(torch.equal(found, unsteered), f"{tool} at strength 0 changes the logits")
            continue
        expected = outputs["python hook", name]
        require_near(found, expected, f"{tool} at {name} layers")
        require(cases.difference(found, unsteered) > 0.01, f"{tool} at {name} layers does nothing")


def ratios(taken: dict, case: dict, per: str = "") -> list[dict]:
    base = taken.pop(("unsteered", "0"))
    rows = [case | {"tool": "unsteered", "layers": "0", "ms": 1e3 * cases.middle(base)["median"]}]
    for (tool, name), own in taken.items():
        row = case | {"tool": tool, "layers": name, "ratio": cases.ratio(own, base)}
        if per:
            row[per] = cases.added(own, base, max(1, len(cases.LAYERS[name])))
        rows.append(row)
    taken["unsteered", "0"] = base
    return rows


@torch.inference_mode()
def distinct_vectors(width: int, budget: float, batch: int = 256) -> list[dict]:
    """A decoding step of 256 sequences that share 1 vector, or have one each.

    Through the real model, and through layers that do nothing, where only the additions are left.
    """
    generator = torch.Generator().manual_seed(3)
    layers = cases.LAYERS["all 16"]
    experts = {
        str(e): es.SteeringVectors({i: torch.randn(width, generator=generator) for i in layers})
        for e in range(batch)
    }
    rows = []
    for name, model in (("model", cases.llama(width)), ("additions alone", cases.hollow(width))):
        _, step = after_prompt(cases.llama(width), batch)
        step.pop(cases.cache_name(model))
        step.pop("attention_mask")
        with ExitStack() as stack:
            timed = {}
            for distinct in (1, 8, 64, 256):
                own = cases.twin(model)
                steering = stack.enter_context(es.attach(own, experts, mode="slot"))
                steering.set_rows([str(b % distinct) for b in range(batch)])
                call = partial(own.model, **step, use_cache=False)
                found = call().last_hidden_state
                _require_rows(model, experts, distinct, step, found)
                timed[distinct] = call
            taken = cases.interleave(timed, budget)
        for distinct, own in taken.items():
            case = {"through": name, "hidden": width, "batch": batch, "distinct": distinct}
            ms = 1e3 * cases.middle(own)["median"]
            rows.append(case | {"ms": ms, "ratio": cases.ratio(own, taken[1])})
    return rows + _reading(width, batch, budget)


def _reading(width: int, batch: int, budget: float) -> list[dict]:
    """What the memory asks: sums over the tables of all layers, or over one table as often."""
    tables = [torch.randn(batch, width) for _ in cases.LAYERS["all 16"]]
    timed = {
        1: lambda: [tables[0].sum() for _ in tables],
        batch: lambda: [table.sum() for table in tables],
    }
    taken = cases.interleave(timed, budget)
    case = {"through": "reading alone (a sum)", "hidden": width, "batch": batch}
    return [
        case
        | {"distinct": distinct, "ms": 1e3 * cases.middle(own)["median"]}
        | {"ratio": cases.ratio(own, taken[1])}
        for distinct, own in taken.items()
    ]


def _require_rows(model, experts: dict, distinct: int, step: dict, found: Tensor) -> None:
    """Against a hook that adds to each sequence its own vector."""
    batch = found.shape[0]
    names = [str(b % distinct) for b in range(batch)]
    deltas = {
        i: torch.stack([experts[n].vectors[i] for n in names]).unsqueeze(1)
        for i in cases.LAYERS["all 16"]
    }
    own = cases.twin(model)
    with cases.hooks(own, deltas):
        expected = own.model(**step, use_cache=False).last_hidden_state
    require_near(found, expected, f"{distinct} distinct vectors")
