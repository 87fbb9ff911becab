"""What the benchmarks of injection on a GPU compare before they time: with a plain hook and the
reference, in bfloat16."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.registry import Case, Gate, benchmark
from benchmarks.steering import cases
from benchmarks.steering.gates_operations import ROUNDED, Exact
from expertsteer import ops
from expertsteer.ops.steering import reference as reference_steer

SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
}
LAYERS = ("0", "1", "all")
PROMPT, CACHE = 16, 64


def llama(shape, device):
    torch.manual_seed(0)
    width = SHAPES[shape]["hidden_size"]
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=32000,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=8 if width >= 1024 else 1,
        max_position_embeddings=CACHE,
    )
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(kept)


def displacements(model, layers):
    depth, width = model.config.num_hidden_layers, model.config.hidden_size
    chosen = {"0": (), "1": (depth // 2,), "all": tuple(range(depth))}[layers]
    return {i: d.to(model.device) for i, d in cases.displacements(width, chosen).items()}


def steered(tool, model, layers):
    """A context of `cases`, with no layers as strength 0 everywhere."""
    deltas = displacements(model, layers)
    if tool == "hook":
        return cases.hooks(model, {i: d.to(torch.bfloat16) for i, d in deltas.items()})
    options = {} if deltas else {"strength": 0.0}
    deltas = {i: d.cpu() for i, d in (deltas or displacements(model, "all")).items()}
    return cases.attached(model, deltas, tool, **options)


def step(model, batch, how):
    """A decoding step at a fixed place of a static cache; it returns the logits."""
    ids = torch.randint(0, 32000, (batch, PROMPT + 1), device=model.device)
    ids.copy_(torch.arange(ids.numel(), device=model.device).view_as(ids) % 32000)
    cache = StaticCache(config=model.config, max_cache_len=CACHE)
    model(ids[:, :PROMPT], **{cases.cache_name(model): cache})
    place = torch.tensor([PROMPT], device=model.device)
    lengths = [layer.cumulative_length for layer in cache.layers]
    run = cases.compiled_step(model) if how == "compiled" else cases.eager_step(model)

    def call():
        for length in lengths:  # the same place each time
            length.fill_(PROMPT)
        return run(ids[:, PROMPT:], cache, position_ids=place.unsqueeze(0))

    return recorded(call) if how == "graph" else call


def recorded(call):
    """The same as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call()

    def replay():
        graph.replay()
        return logits

    return replay


@benchmark(
    "steering.step_gpu",
    # Folded and added vectors round differently.
    gate=Gate("logits with a plain hook's", 0.05, cases.difference, "of the largest"),
    smallest={
        "shape": "tiny",
        "batch": 2,
        "how": "eager",
        "tool": "slot",
        "layers": "all",
        "device": "cpu",
    },
)
def STEP_GPU(stack, shape, batch, how, tool, layers, device="cuda") -> Case:
    """A decoding step that replays over a static cache: eager, compiled, or a CUDA graph."""
    stack.enter_context(torch.inference_mode())
    torch.compiler.reset()
    model = llama(shape, device)
    with steered("hook", model, layers):
        expected = step(model, batch, "eager")().clone().float()
    plain, own = cases.twin(model), cases.twin(model)
    stack.enter_context(steered(tool, own, layers))
    works = {"unsteered": step(plain, batch, how), "steered": step(own, batch, how)}
    return Case(works, {"steered": works["steered"]().float()}, expected, ("unsteered",))


@benchmark(
    "steering.addition_gpu",
    gate=ROUNDED,
    smallest={"size": (2, 3, 64), "device": "cpu"},
)
def ADDITION_GPU(stack, size, device="cuda") -> Case:
    """The kernel alone, beside a copy of as many bytes."""
    stack.enter_context(torch.inference_mode())
    batch, _, width = size
    hidden = torch.randn(size, device=device).to(torch.bfloat16)
    table = torch.randn(batch + 1, width, device=device)
    table[0] = 0
    rows = torch.arange(1, batch + 1, device=device, dtype=torch.int32).view(batch, 1)
    strengths = torch.ones(batch, 1, device=device)
    exact = reference_steer.steer(hidden.double(), table.double(), rows, strengths.double())
    function = ops.choose("steer", "native", hidden.device, hidden.dtype)
    options = {"operation": "add", "inverse_norms": ops.inverse_norms(table)}
    found = function(hidden.clone(), table, rows, strengths, **options)
    other = torch.empty_like(hidden)
    works = {
        "add": lambda: function(hidden, table, rows, strengths, **options),
        "copy": lambda: other.copy_(hidden),
    }
    figures = {"bytes": 2 * hidden.nbytes}  # read and written, by both
    return Case(works, {"add": found}, Exact(exact, 2**-8, 1e-2), ("copy",), figures)
