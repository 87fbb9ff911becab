"""A streamed fit in a process of its own, whose peak memory is its own.

python -m benchmarks.rfm.alone '[n, d, iters, budget, regime, double]'     # figures, as json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from benchmarks import common, timing
from benchmarks.rfm import cases


def run(n, d, iters, budget, regime="streamed", double=False) -> dict:
    """Seconds, peak memory, plan, predictions at 200 points and direction.

    Raises:
        RuntimeError: the process failed.
    """
    arguments = json.dumps([n, d, iters, budget, regime, double])
    command = [sys.executable, "-m", "benchmarks.rfm.alone", arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=common.ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout)


@lru_cache(1)
def exact(n, d, iters) -> dict:
    """The same in double precision, in the feature regime."""
    return run(n, d, iters, 20 << 30, "feature", True)


def measure(n, d, iters, budget, regime, double) -> dict:
    X, y = cases.problem(n, d)
    new, _ = cases.problem(200, d, seed=1)
    if double:
        X, y, new = X.double(), y.double(), new.double()
    cases.ours(X[:300], y[:300], iters=1)
    before = peak()
    machine, seconds = timing.once(
        lambda: cases.ours(X, y, iters=iters, memory_budget=budget, regime=regime)
    )
    used = peak() - before
    fits = machine._fitted.parts[0].kept[0].fits
    return {
        "seconds": seconds,
        "peak": used,
        "budget": machine.plan_.memory_budget,
        "ridge_raised": bool((machine.ridge_ > 1.01 * cases.REG).any()),
        "regime": machine.plan_.regime,
        "iterations": getattr(fits, "iterations", []),
        "predictions": machine.predict(new).flatten().tolist(),
        "direction": machine.direction_.tolist(),
    }


def peak() -> int:
    """Bytes, of this process: getrusage would start from its parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(*json.loads(sys.argv[1]))))
