"""Injection on a GPU: decoding steps of Llama-shaped models in bfloat16, and the kernel alone.

    python -m pytest benchmarks/steering/bench_injection_gpu.py --benchmark-only   # make bench-gpu
    python -m benchmarks.steering.bench_injection_gpu --smoke                # its code on a CPU

Each step replays over a static cache: eager, compiled, or as a recorded CUDA graph. The steered and
the unsteered step take turns under the device's events. The output is first compared with that of
a plain hook, and no speed is reported when it differs. For folding the profiler counts kernels: as
many as unsteered.
"""

import argparse
from contextlib import ExitStack
from statistics import median

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from benchmarks.steering import cases
from expertsteer import ops
from expertsteer.ops import extension
from expertsteer.ops.steering import reference

pytestmark = pytest.mark.gpu

SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
}
BATCHES, HOW, LAYERS = (1, 32, 256), ("eager", "compiled", "graph"), ("0", "1", "all")
PROMPT, CACHE, ROUNDS = 16, 64, 30
TOLERANCE = 0.05  # bfloat16, of the largest logit: folded and added vectors round differently


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
    """A context of `inject_cases`, with no layers as strength 0 everywhere."""
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


def seconds(call, device):
    """One call, by the device's events, or by the clock of a smoke run."""
    if device == "cpu":
        return cases.interleave({"call": call}, 0.0, least=1)["call"][0]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def kernels(call):
    """How many kernels one call launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


@torch.inference_mode()
def compare(shape, batch, how, tool, layers, device, rounds=ROUNDS):
    """Times of the steered and the unsteered step in turns, checked against a plain hook."""
    model = llama(shape, device)
    with steered("hook", model, layers):
        expected = step(model, batch, "eager")().clone()
    plain, own = cases.twin(model), cases.twin(model)
    with ExitStack() as stack:
        stack.enter_context(steered(tool, own, layers))
        calls = {"unsteered": step(plain, batch, how), "steered": step(own, batch, how)}
        error = cases.difference(calls["steered"]().float(), expected.float())
        if not error <= TOLERANCE:
            pytest.fail(f"the logits differ from a plain hook's by {error:.1e}; no speed")
        found = {"error": error}
        if device != "cpu":
            found |= {f"kernels, {name}": kernels(call) for name, call in calls.items()}
        times = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds(call, device))
    ratios = [a / b for a, b in zip(times["steered"], times["unsteered"])]
    return found | {"ratio": median(ratios), "ms unsteered": 1e3 * median(times["unsteered"])}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("tool", ["fold", "slot"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", ["1B", "8B"])
def bench_step(benchmark, shape, batch, how, tool, layers):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if tool == "slot" and (reason := extension.why_not(torch.device("cuda"), torch.bfloat16)):
        pytest.skip(reason)
    torch.compiler.reset()
    benchmark.group = f"step of {shape}, batch {batch}, {how}, {layers} layers"
    found = benchmark.pedantic(
        compare, args=(shape, batch, how, tool, layers, "cuda"), rounds=1, iterations=1
    )
    benchmark.extra_info |= found | {"device": torch.cuda.get_device_name()}
    if tool == "fold" and found["kernels, steered"] != found["kernels, unsteered"]:
        pytest.fail(f"folding changed the number of kernels: {found}")


@torch.inference_mode()
def kernel_share(batch, tokens, width, device, calls=20):
    """Bytes per second of the fused addition as a share of a device-to-device copy's."""
    hidden = torch.randn(batch, tokens, width, device=device).to(torch.bfloat16)
    table = torch.randn(batch + 1, width, device=device)
    table[0] = 0
    rows = torch.arange(1, batch + 1, device=device, dtype=torch.int32).view(batch, 1)
    strengths = torch.ones(batch, 1, device=device)
    arguments = table, rows, strengths
    expected = reference.steer(hidden.double(), table.double(), rows, strengths.double())
    function = ops.choose("steer", "native", hidden.device, hidden.dtype)
    norms = ops.inverse_norms(table)
    found = function(hidden.clone(), *arguments, operation="add", inverse_norms=norms)
    if not torch.allclose(found.double(), expected, rtol=2**-8, atol=1e-2):
        pytest.fail("the result differs from the reference; no speed is reported")
    other = torch.empty_like(hidden)

    def add():
        for _ in range(calls):
            function(hidden, *arguments, operation="add", inverse_norms=norms)

    def copy():
        for _ in range(calls):
            other.copy_(hidden)

    moved = 2 * hidden.nbytes  # read and written, by both
    add(), copy()
    rates = {
        name: calls * moved / median(seconds(call, device) for _ in range(9))
        for name, call in (("add", add), ("copy", copy))
    }
    return {"GB/s": rates["add"] / 1e9, "share of a copy": rates["add"] / rates["copy"]}


@pytest.mark.parametrize("size", [(256, 1, 4096), (32, 512, 4096), (8, 2048, 8192)], ids=str)
def bench_kernel(benchmark, size):
    """Target: at least 80 % of the rate of a copy, where the states do not fit in a cache."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if reason := extension.why_not(torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    benchmark.group = f"the addition alone, {size} in bfloat16"
    found = benchmark.pedantic(kernel_share, args=(*size, "cuda"), rounds=1, iterations=1)
    benchmark.extra_info |= found | {"device": torch.cuda.get_device_name()}


def smoke():
    """Every path that needs no CUDA, on a tiny model."""
    for how in ("eager", "compiled"):
        for tool in ("fold", "slot"):
            for layers in LAYERS:
                torch.compiler.reset()
                print(how, tool, layers, compare("tiny", 2, how, tool, layers, "cpu", rounds=2))
    print(kernel_share(2, 3, 64, "cpu", calls=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", required=True, help="on the CPU")
    parser.parse_args()
    smoke()
