"""Injection on a GPU: decoding steps of Llama-shaped models in bfloat16, and the kernel alone.

    python -m pytest benchmarks/steering/bench_injection_gpu.py --benchmark-only   # make bench-gpu
    python -m benchmarks.steering.bench_injection_gpu --smoke                # its code on a CPU

The steered and the unsteered step take turns under the device's events. For folding the profiler
counts kernels: as many as unsteered.
"""

import argparse
from itertools import product
from statistics import median

import pytest
import torch

from benchmarks import timing
from benchmarks.steering.gates_gpu import ADDITION_GPU, LAYERS, STEP_GPU
from expertsteer.ops import extension

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BATCHES, HOW, ROUNDS = (1, 32, 256), ("eager", "compiled", "graph"), 30


def kernels(call):
    """How many kernels one call launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)


def compare(size, rounds=ROUNDS):
    """The steered and the unsteered step in turns."""
    with STEP_GPU.checked(**size) as case:
        found = dict(case.errors)
        if size.get("device") == "cpu":
            times = timing.interleave(case.works, least=rounds)
        else:
            found |= {f"kernels, {name}": kernels(call) for name, call in case.works.items()}
            times = {name: [] for name in case.works}
            for _ in range(rounds):
                for name, call in case.works.items():
                    times[name].append(timing.on_device(call))
    found["ratio"] = timing.ratio(times["steered"], times["unsteered"])["median"]
    return found | {"ms unsteered": 1e3 * median(times["unsteered"])}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("tool", ["fold", "slot"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", ["1B", "8B"])
def bench_step(benchmark, shape, batch, how, tool, layers):
    if tool == "slot" and (reason := extension.why_not(torch.device("cuda"), torch.bfloat16)):
        pytest.skip(reason)
    size = {"shape": shape, "batch": batch, "how": how, "tool": tool, "layers": layers}
    benchmark.group = f"step of {shape}, batch {batch}, {how}, {layers} layers"
    found = benchmark.pedantic(compare, args=(size,), rounds=1, iterations=1)
    benchmark.extra_info |= found | {"device": torch.cuda.get_device_name()}
    if tool == "fold" and found["kernels, steered"] != found["kernels, unsteered"]:
        pytest.fail(f"folding changed the number of kernels: {found}")


def copy_share(size, calls=20):
    """Bytes per second of the fused addition as a share of a device-to-device copy's."""
    with ADDITION_GPU.checked(size=size) as case:
        rates = {
            name: case.figures["bytes"] / timing.device_seconds(work, calls, rounds=9)
            for name, work in case.works.items()
        }
    return {"GB/s": rates["add"] / 1e9, "share of a copy": rates["add"] / rates["copy"]}


@pytest.mark.parametrize("size", [(256, 1, 4096), (32, 512, 4096), (8, 2048, 8192)], ids=str)
def bench_kernel(benchmark, size):
    """Target: at least 80 % of the rate of a copy, where the states do not fit in a cache."""
    if reason := extension.why_not(torch.device("cuda"), torch.bfloat16):
        pytest.skip(reason)
    benchmark.group = f"the addition alone, {size} in bfloat16"
    found = benchmark.pedantic(copy_share, args=(size,), rounds=1, iterations=1)
    benchmark.extra_info |= found | {"device": torch.cuda.get_device_name()}


def smoke():
    """Every path that needs no CUDA, on a tiny model."""
    for how, tool, layers in product(HOW[:2], ("fold", "slot"), LAYERS):
        size = {"shape": "tiny", "batch": 2, "how": how, "tool": tool, "layers": layers}
        print(how, tool, layers, compare(size | {"device": "cpu"}, rounds=2))
    with ADDITION_GPU.checked(**ADDITION_GPU.smallest) as case:
        print(case.errors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", required=True, help="on the CPU")
    parser.parse_args()
    smoke()
