"""What injection adds to a layer call, a decoding step and a whole decode, tool beside tool.

    python -m pytest benchmarks/steering -m "not gpu" --benchmark-only     # each part
    python -m benchmarks.steering.table                                    # the committed tables

The tables pair the tools within rounds; here each one runs alone, on the same cases.
"""

import pytest

from benchmarks.steering import cases
from benchmarks.steering.gates import DECODE, LAST_LINEAR, LAYER_CALL, STEP, TOOLS

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [(width, batch) for width in cases.WIDTHS for batch in cases.BATCHES]


@pytest.mark.parametrize("tool", ["unsteered", "python hook", "slot"])
def bench_layer_call(benchmark, tool, width=256):
    size, group = {"width": width, "calls": 500}, f"500 calls of an empty layer, hidden {width}"
    LAYER_CALL.time(benchmark, tool, group, size, rounds=100, warmup_rounds=5)


@pytest.mark.parametrize("tool", TOOLS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_decoding_step(benchmark, size, tool):
    """One step after the prompt, with a cache."""
    width, batch = size
    given = {"width": width, "batch": batch}
    STEP.time(benchmark, tool, f"one step, hidden {width}, batch {batch}", given, rounds=20)


@pytest.mark.parametrize("tool", TOOLS, ids=str)
def bench_decode(benchmark, tool, width=256, batch=1, new=64):
    group = f"{new} tokens, hidden {width}, batch {batch}"
    DECODE.time(benchmark, tool, group, {"width": width, "batch": batch, "new": new})


@pytest.mark.parametrize("bias", ["without bias", "with bias"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_last_linear(benchmark, size, bias):
    width, batch = size
    rounds = {"iterations": 500 if width * batch <= 1024 else 20, "warmup_rounds": 5}
    group = f"last linear of a block, hidden {width}, batch {batch}"
    LAST_LINEAR.time(benchmark, bias, group, {"width": width, "batch": batch}, rounds=60, **rounds)
