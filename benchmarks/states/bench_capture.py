"""What a capture costs beside the usual loop over ``output_hidden_states``.

    python -m pytest benchmarks/states/bench_capture.py --benchmark-only

The states are compared first; no speed is reported where they differ. `table_capture.py` writes
the table.
"""

import pytest
import torch

from benchmarks.states import cases

TEXTS = 96


@pytest.fixture(scope="module")
def world():
    torch.set_num_threads(1)
    network, words, texts = cases.model(), cases.tokenizer(), cases.contrast(TEXTS)
    return network, words, texts, cases.plain(network, words, texts)


def ours(network, words, texts, folder):
    return cases.ours(network, words, texts, folder).read().states


def plain(network, words, texts, folder):
    return cases.plain(network, words, texts)


def sorted_without_head(network, words, texts, folder):
    return cases.plain(network, words, texts, sort=True, head=False)


@pytest.mark.parametrize("loop", [ours, plain, sorted_without_head], ids=lambda f: f.__name__)
def bench_capture(benchmark, loop, world, tmp_path):
    network, words, texts, expected = world
    different = cases.agree(loop(network, words, texts, tmp_path / "check"), expected)
    if not different < 1e-4:
        pytest.fail(f"states differ by {different:.1g}; no speed is reported")
    folders = iter(range(1000))
    benchmark.group = f"{TEXTS} texts, 6 layers x 256"
    benchmark.pedantic(
        lambda: loop(network, words, texts, tmp_path / str(next(folders))),
        rounds=5,
        warmup_rounds=1,
    )


def bench_memory(benchmark):
    """Peaks are no times: the benchmark's own figure is how long it took to find them."""
    found = {}
    benchmark.group = "memory of 32 texts of 128 tokens, 6 layers x 256"
    benchmark.pedantic(
        lambda: found.update({kind: cases.peak(kind) for kind in ("passes", "plain", "ours")}),
        rounds=1,
    )
    extra = {kind: max(found[kind] - found["passes"], 0) for kind in ("plain", "ours")}
    benchmark.extra_info["MiB beyond the passes"] = extra
    if extra["ours"] > extra["plain"] / 10:
        pytest.fail(f"more than a tenth of the loop's extra memory: {extra}")
