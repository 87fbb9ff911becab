"""The clock of every benchmark: one call, rounds of several in turns, and the device's own events.

Only this file reads a clock. It needs nothing but torch, and that on a GPU alone, because the peers
of `benchmarks.steering` run it in environments of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from statistics import median
from typing import Any

Work = Callable[[], Any]
Clock = Callable[[], float]
PROCESSOR: Clock = time.process_time


def once(work: Work, clock: Clock = time.perf_counter) -> tuple[Any, float]:
    """What one call gives, and its seconds."""
    start = clock()
    result = work()
    return result, clock() - start


def taken(
    work: Work, rounds: int = 5, warm: int = 1, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of ``rounds`` calls after ``warm`` more."""
    return [once(work, clock)[1] for _ in range(warm + rounds)][warm:]


def seconds(work: Work, rounds: int = 5, warm: int = 1, clock: Clock = time.perf_counter) -> float:
    """The median of `taken`."""
    return median(taken(work, rounds, warm, clock))


def interleave(
    works: dict[Hashable, Work], budget: float = 0.0, least: int = 5, most: int = 2000
) -> dict[Hashable, list[float]]:
    """Seconds of each call in rounds A B C, B C A, C A B, ... until the budget is spent.

    A machine that drifts slows all calls of a round down, so ratios within rounds hold. The first
    round warms up.
    """
    names, found = list(works), {name: [] for name in works}
    for work in works.values():
        work()
    end, rounds = time.perf_counter() + budget, 0
    while rounds < least or (time.perf_counter() < end and rounds < most):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(once(works[name])[1])
        rounds += 1
    return found


def middle(values: list[float]) -> dict:
    """Median with its 95 % interval by order statistics, and the number of rounds."""
    ordered, n = sorted(values), len(values)
    reach = int(0.98 * n**0.5) + 1
    low, high = max(0, n // 2 - reach), min(n - 1, (n - 1) // 2 + reach)
    return {"median": median(values), "low": ordered[low], "high": ordered[high], "rounds": n}


def ratio(own: list[float], baseline: list[float]) -> dict:
    """Paired ratios of the rounds."""
    return middle([a / b for a, b in zip(own, baseline)])


def added(own: list[float], baseline: list[float], parts: int) -> dict:
    """Paired differences of the rounds in microseconds, shared out over ``parts``."""
    return middle([1e6 * (a - b) / parts for a, b in zip(own, baseline)])


def on_device(work: Work, calls: int = 1) -> float:
    """Seconds of one call by the GPU's events, as the mean of ``calls`` in a row."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def device_seconds(work: Work, calls: int = 10, rounds: int = 10) -> float:
    """Median of `on_device` over ``rounds``, after two to warm up."""
    return median([on_device(work, calls) for _ in range(rounds + 2)][2:])


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy on the GPU that no cache holds."""
    import torch

    source = torch.empty(2**28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source))


def synchronised(work: Work, calls: int = 1) -> Work:
    """``calls`` of the work, and the GPU at rest after them."""

    def run() -> None:
        import torch

        for _ in range(calls):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run
