"""What a capture costs beside the usual loop over ``output_hidden_states``.

python -m pytest benchmarks/states/bench_capture.py --benchmark-only
python -m benchmarks.states.table                                     # the committed tables
"""

import pytest

from benchmarks.states.gates import CAPTURE, LOOP, OURS
from benchmarks.states.table import extra_memory

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = 96


@pytest.mark.parametrize("loop", [OURS, LOOP, "plain loop, sorted, no head"])
def bench_capture(benchmark, loop):
    CAPTURE.time(benchmark, loop, f"{TEXTS} texts, 6 layers x 256", {"count": TEXTS})


def bench_memory(benchmark):
    """Peaks are no times: the benchmark's own figure is how long it took to find them."""
    benchmark.group = "memory of 32 texts of 128 tokens, 6 layers x 256"
    extra = benchmark.pedantic(extra_memory, args=(["plain", "ours"],), rounds=1)
    benchmark.extra_info["MiB beyond the passes"] = extra
    if extra["ours"] > extra["plain"] / 10:
        pytest.fail(f"more than a tenth of the loop's extra memory: {extra}")
