"""What the benchmarks of injection compare before they time: every tool with a plain hook.

The works of a case are named ``(tool, at how many layers)``. Each tool steers modules of its own
over the same weights, while the case is open.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

import expertsteer as es
from benchmarks.registry import ByWork, Case, Gate, benchmark, called
from benchmarks.steering import cases
from benchmarks.steering.cases import AGAIN, Steered
from expertsteer.steering.decoder_slot import OpenPass
from expertsteer.steering.prompt import Prompt

ALL = "all 16"
UNSTEERED = ("unsteered", "0")
TOOLS = [
    UNSTEERED,
    (AGAIN, "0"),
    *(
        (tool, name)
        for name, layers in cases.LAYERS.items()
        for tool in (cases.OWN_TOOLS[1:] if layers else ("fold", "slot"))
    ),
    (cases.BIAS, ALL),
]
SMALL = {"width": 64, "batch": 2}


def gate(what: str, error=cases.off, bound: float = cases.TOLERANCE) -> Gate:
    return Gate(f"{what} of every tool with a plain hook's", bound, error, "of the largest entry")


def like_a_hook(outputs: dict) -> ByWork:
    """A plain hook's result at as many layers; at strength 0 the unsteered one, to the bit."""
    unsteered = outputs[UNSTEERED]
    return ByWork(
        {
            (tool, name): Steered(None if name == "0" else outputs["python hook", name], unsteered)
            for tool, name in outputs
        }
    )


def turned(tools: list, turn: int) -> list:
    """In another order each turn, so that in five turns none is always made first."""
    first = turn * len(tools) // 5 % len(tools)
    return tools[first:] + tools[:first]


def steered_twins(model, stack, turn: int = 0):
    """Twins of the model, each steered by one of `TOOLS` while the stack is open."""
    for tool, name in turned(TOOLS, turn):
        own = cases.twin(model)
        if (tool, name) not in TOOLS[:2]:
            deltas = cases.displacements(model.config.hidden_size, cases.LAYERS[name])
            stack.enter_context(cases.steered(tool, own, deltas))
        yield (tool, name), own


def after_prompt(model, batch: int) -> tuple[Tensor, dict]:
    """The prompt, and the arguments of the decoding step that follows it."""
    ids = cases.prompt(batch)
    cache = DynamicCache(config=model.config)
    name = cases.cache_name(model)
    model(ids, **{name: cache})
    mask = torch.ones(batch, cases.PROMPT + 1, dtype=torch.long)
    return ids, {"input_ids": ids[:, -1:], name: cache, "attention_mask": mask}


def step_of(model, batch: int):
    """A call that runs one decoding step at the same place each time, and gives its logits."""
    _, step = after_prompt(model, batch)

    def call() -> Tensor:
        logits = model(**step).logits
        step[cases.cache_name(model)].crop(-1)
        return logits

    return call


def other_entries(found: Tensor, expected: Tensor) -> float:
    return float((found != expected).sum())


@benchmark(
    "steering.layer_call",
    gate=gate("the output to the bit", other_entries, 0.0),
    smallest={"width": 64, "calls": 1},
)
def LAYER_CALL(stack, width, calls=1000) -> Case:
    """A layer that does nothing, called alone inside an open pass, ``calls`` times."""
    stack.enter_context(torch.inference_mode())
    tiny = 1e-9  # the same state is steered millions of times
    deltas = {i: tiny * d for i, d in cases.displacements(width, cases.LAYERS[ALL]).items()}
    hidden = torch.randn(1, 1, width)
    works, found, expected = {}, {}, ByWork()
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
        layer, zeros = model.model.layers[8], torch.zeros(1, 1, width)
        expected[tool] = zeros if tool == "unsteered" else deltas[8].expand(1, 1, width)
        found[tool] = layer(zeros.clone())

        def call(layer=layer):
            for _ in range(calls):
                layer(hidden)

        works[tool] = call
    return Case(works, found, expected)


@benchmark("steering.pass", gate=gate("last hidden states"), smallest=SMALL)
def PASS(stack, width, batch) -> Case:
    """One decoding step through 16 layers that do nothing: the slots and what opens the pass.

    The tools steer as inside ``generate`` after a prompt; ``"generated"`` also chooses positions,
    and rows for each sequence.
    """
    stack.enter_context(torch.inference_mode())
    ids, step = after_prompt(cases.llama(width), batch)
    plain, works = cases.hollow(width), {}
    for name, layers in cases.LAYERS.items():
        deltas = cases.displacements(width, layers)
        tools = ["python hook", "hook, in place", "slot", "slot, positions and rows"]
        for tool in tools if deltas else ["slot"]:
            model = cases.hollow(width)
            if "hook" in tool:
                stack.enter_context(cases.hooks(model, deltas, "in place" in tool))
            else:
                steering = stack.enter_context(cases.attached(model, deltas, "slot"))
                cache = cases.cache_name(model)
                given = {"attention_mask": torch.ones_like(ids), cache: step[cache]}
                prompt = Prompt.of_generate(model, (ids,), given)
                stack.enter_context(steering.generating(prompt))
                if "rows" in tool:
                    steering.set(positions="generated").set_rows([0] * batch)
            works[tool, name] = partial(model.model, **step, use_cache=True)
    works[UNSTEERED] = partial(plain.model, **step, use_cache=True)
    results = called(works, lambda out: out.last_hidden_state)
    found = results["found"]
    hooked = {name: found["python hook" if name != "0" else "unsteered", name] for name in
              cases.LAYERS}  # fmt: skip
    expected = ByWork({work: Steered(hooked[work[1]]) for work in works})
    return Case(works, expected=expected, **results)


@benchmark(
    "steering.threads",
    gate=Gate("logits with those of one thread", 1e-4, cases.difference, "of the largest"),
    smallest=SMALL | {"threads": 2},
)
def THREADS(stack, width, batch, threads) -> Case:
    """The unsteered step with so many threads."""
    stack.enter_context(torch.inference_mode())
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    works = {"unsteered": step_of(cases.llama(width), batch)}
    torch.set_num_threads(1)
    expected = works["unsteered"]()
    torch.set_num_threads(threads)
    return Case(works, expected=expected, **called(works))


@benchmark("steering.step", gate=gate("logits of a decoding step"), smallest=SMALL)
def STEP(stack, width, batch, turn=0) -> Case:
    """One decoding step of the real model with a cache; every tool on the same weights."""
    stack.enter_context(torch.inference_mode())
    twins = steered_twins(cases.llama(width), stack, turn)
    works = {key: step_of(own, batch) for key, own in twins}
    results = called(works)
    return Case(works, expected=like_a_hook(results["found"]), **results)


@benchmark(
    "steering.decode",
    gate=gate("tokens and logits", cases.decoded_off),
    smallest=SMALL | {"new": 3},
)
def DECODE(stack, width, batch, new) -> Case:
    """Greedy ``generate`` after a prompt."""
    stack.enter_context(torch.inference_mode())
    ids, works, found = cases.prompt(batch), {}, {}
    for key, own in steered_twins(cases.llama(width), stack):
        works[key] = partial(cases.decode, own, ids, new)
        found[key] = cases.decoded(cases.decode(own, ids, new, **cases.FULL))
    logits = like_a_hook({key: result[1] for key, result in found.items()})
    likes = {key: UNSTEERED if key[1] == "0" else ("python hook", key[1]) for key in works}
    expected = ByWork({key: (found[like][0], logits[key]) for key, like in likes.items()})
    return Case(works, found, expected)


@benchmark(
    "steering.distinct",
    gate=gate("last hidden states, to each sequence its own vector,"),
    smallest=SMALL | {"through": "model", "distinct": (1, 2)},
)
def DISTINCT(stack, width, batch, through, distinct) -> Case:
    """A decoding step of sequences that share so many vectors: through the real model, or through
    layers that do nothing, where only the additions are left."""
    stack.enter_context(torch.inference_mode())
    generator = torch.Generator().manual_seed(3)
    layers = cases.LAYERS[ALL]
    experts = {
        str(e): es.SteeringVectors({i: torch.randn(width, generator=generator) for i in layers})
        for e in range(batch)
    }
    model = cases.llama(width) if through == "model" else cases.hollow(width)
    ids, works, expected = cases.prompt(batch)[:, -1:], {}, ByWork()
    for count in distinct:
        names = [str(b % count) for b in range(batch)]
        own, hooked = cases.twin(model), cases.twin(model)
        steering = stack.enter_context(es.attach(own, experts, mode="slot"))
        steering.set_rows(names)
        works[count] = partial(own.model, input_ids=ids, use_cache=False)
        tables = {i: torch.stack([experts[n].vectors[i] for n in names])[:, None] for i in layers}
        with cases.hooks(hooked, tables):
            expected[count] = Steered(hooked.model(ids, use_cache=False).last_hidden_state)
    return Case(works, expected=expected, **called(works, lambda out: out.last_hidden_state))


@benchmark(
    "steering.reading",
    gate=Gate("sums with double precision's", 0.1, lambda f, e: float((f - e).abs().max())),
    smallest=SMALL,
)
def READING(stack, width, batch) -> Case:
    """What the memory asks: sums over the tables of all layers, or over one table as often."""
    tables = [torch.randn(batch, width) for _ in cases.LAYERS[ALL]]
    works = {
        1: lambda: [tables[0].sum() for _ in tables],
        batch: lambda: [table.sum() for table in tables],
    }
    exact = torch.stack([table.double().sum() for table in tables])
    expected = ByWork({1: exact[:1].expand(len(tables)), batch: exact})
    return Case(works, expected=expected, **called(works, torch.stack))


@benchmark(
    "steering.last_linear",
    gate=Gate("a product with a zero bias with one without", 1e-5, cases.difference),
    smallest=SMALL,
)
def LAST_LINEAR(stack, width, batch) -> Case:
    """torch's own linear at the end of a block: no folded vector can cost less than its bias."""
    stack.enter_context(torch.inference_mode())
    linear = cases.llama(width, depth=1).model.layers[0].mlp.down_proj
    call = partial(torch.nn.functional.linear, torch.randn(batch, 1, linear.in_features))
    works = {
        "without bias": partial(call, linear.weight),
        "with bias": partial(call, linear.weight, torch.zeros(width)),
    }
    results = called(works)
    return Case(works, expected=results["found"]["without bias"], **results)
