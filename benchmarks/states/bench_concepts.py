"""Vectors for many concepts, beside the forward passes that they cannot do without.

    python -m pytest benchmarks/states/bench_concepts.py --benchmark-only

One concept is compared with a fit of its own first. `table_capture.py` writes the table, with 200
concepts.
"""

import pytest
import torch

import expertsteer as es
from benchmarks.states import cases
from expertsteer import demo

CONCEPTS, EXAMPLES = 6, 100


@pytest.fixture(scope="module")
def world():
    torch.set_num_threads(1)
    return demo.load("expert"), demo.load("target"), cases.demo_concepts(CONCEPTS, EXAMPLES)


def bench_many_concepts(benchmark, world, tmp_path):
    expert, target, sets = world
    index = cases.many(sets, expert, target, tmp_path / "check")[1]
    if (wrong := cases.unlike_alone(sets, expert, target, tmp_path / "check", 1)) is not None:
        pytest.fail(f"{wrong}; no speed is reported")
    folders = iter(range(100))
    benchmark.group = f"{CONCEPTS} concepts of {EXAMPLES} texts"
    benchmark.extra_info["different texts"] = index["texts"]
    benchmark.pedantic(
        lambda: cases.many(sets, expert, target, tmp_path / str(next(folders))),
        rounds=5,
        warmup_rounds=1,
    )


def bench_forward_passes_alone(benchmark, world):
    expert, target, sets = world
    texts = es.ContrastSet(tuple(e for contrast in sets.values() for e in contrast))
    benchmark.group = f"{CONCEPTS} concepts of {EXAMPLES} texts"
    benchmark.pedantic(
        lambda: [cases.forward_passes(*pair, texts, 64) for pair in (expert, target)],
        rounds=5,
        warmup_rounds=1,
    )
