"""The steps of a fit measured at sizes that fit here, beside what their operation counts say."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import torch

import expertsteer as es
from expertsteer.rfm.plan import plan

SIZES = ((1000, 512, 384), (2000, 1024, 768), (4000, 1024, 768))  # examples, widths of both sides
LAYERS = (6, 4)
REPEATS = 3


def product_rate(size: int = 1536) -> float:
    """Operations per second of a large single-precision product here."""
    a = torch.randn(size, size)
    return 2 * size**3 / _fastest(lambda: a @ a)


def check_table() -> str:
    """Markdown: seconds of each step, and its operations as a share of the product rate.

    A count is good for prediction where the share stays the same while the problem grows.
    """
    rate = product_rate()
    head = ["step", *(f"n={n}, widths {e} and {t}" for n, e, t in SIZES)]
    columns = [_steps(*size) for size in SIZES]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in columns[0]:
        cells = [f"{s:.2f} s, {ops / s / rate:.0%}" for s, ops in (c[name] for c in columns)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    where = f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    stamp = f"{where}, commit {commit}, {time.strftime('%Y-%m-%d')}"
    return "\n".join([*lines, "", f"Product rate {rate / 1e9:.0f} GFLOP/s; {stamp}."])


def _steps(n: int, width_e: int, width_t: int) -> dict[str, tuple[float, float]]:
    """Step -> seconds and operations; the pieces that `scaling.steps` adds up."""
    from benchmarks.scaling.scaling import COMPONENTS, KRYLOV

    expert, target = _states(LAYERS[0], n, width_e, 1), _states(LAYERS[1], n, width_t, 2)
    pairing = es.LayerPairing([(1, 0, 0.0), (3, 2, 0.0)])
    count = len(pairing)
    alignment = es.align(expert, target, pairing=pairing)
    columns = LAYERS[0] * width_e + LAYERS[1] * width_t
    information = n * columns * (2 * KRYLOV + 2 * COMPONENTS)
    information += 2 * n * LAYERS[0] * LAYERS[1] * COMPONENTS**2
    small, large = sorted((n, width_e))
    axes = 2 * small**2 * large + 10 * small**3
    rotation = 2 * n * width_t * (width_e + 2 * width_t) + 20 * width_t**3
    fitted = plan(int(0.8 * n), width_t, iters=3)
    calls: dict[str, tuple[Callable, float]] = {
        "information of all pairs": (
            lambda: es.mutual_information(expert.states, target.states),
            information,
        ),
        "align the chosen pairs": (
            lambda: es.align(expert, target, pairing=pairing),
            count * (axes + rotation),
        ),
        "fit the directions": (
            lambda: es.fit_vectors(expert, target, alignment, pairing),
            count * fitted.operations[fitted.regime],
        ),
    }
    return {name: (_fastest(call), operations) for name, (call, operations) in calls.items()}


def _states(layers: int, n: int, width: int, seed: int) -> es.HiddenStates:
    generator = torch.Generator().manual_seed(seed)
    cause = torch.randn(n, 48, generator=torch.Generator().manual_seed(0))
    mixing = torch.randn(layers, 48, width, generator=generator)
    states = cause @ mixing + torch.randn(layers, n, width, generator=generator)
    return es.HiddenStates(states, (cause[:, 0] > 0).long(), keys=torch.arange(n))


def _fastest(call: Callable) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        return next(names, os.uname().machine)
