"""What a calibration costs, and a whole table of controls at equal price, on the demo's models.

    python -m pytest benchmarks/bench_calibration.py --benchmark-only

The peer is the usual way: bisection from the same start, one strength at a time, until the bracket
is as narrow. Either result is checked first; no speed is reported where it misses the budget.
"""

import contextlib
import io
import math

import pytest
import torch

import expertsteer as es
from expertsteer import demo
from expertsteer.calibration.divergence import Divergence, neutral_texts
from expertsteer.demo.run import at_one_price, one_thread
from expertsteer.evaluation.methods import DEFAULT

BUDGET = 0.1
TEXTS = demo.world.plain_texts(20, seed=3)


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)  # as in the demo: threads would wait for one another
    model, tokenizer = demo.load("target")
    drawn = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    vectors = dict(enumerate(drawn / drawn.norm(dim=1, keepdim=True)))
    return model, tokenizer, es.SteeringVectors(vectors, dict.fromkeys(vectors, 24.0))


def price(model, tokenizer, vectors, strength):
    divergence = Divergence(model, neutral_texts(model, TEXTS, tokenizer), "kl", 1, 64)
    with es.attach(model, vectors, strength=1.0, mode="slot") as steering:
        return divergence(steering, 0, [strength])[0]


def bisected(model, tokenizer, vectors):
    """The strength, and how many passes over the texts it took."""
    divergence = Divergence(model, neutral_texts(model, TEXTS, tokenizer), "kl", 1, 64)
    low, high, place = 0.0, math.inf, 0.2
    with es.attach(model, vectors, strength=1.0, mode="slot") as steering:
        while not low or high / low > 1.02:
            within = divergence(steering, 0, [place])[0] <= BUDGET
            low, high = (place, high) if within else (low, place)
            place = 2 * low if high == math.inf else (low + high) / 2
    return low, divergence.passes


def calibrated(model, tokenizer, vectors):
    result = es.calibrate(model, vectors, TEXTS, tokenizer, budget=BUDGET, batch_size=64)
    return result.strength, result.passes


@pytest.mark.parametrize("search", [calibrated, bisected], ids=lambda f: f.__name__)
def bench_calibration(benchmark, search, target):
    strength, passes = search(*target)
    if not price(*target, strength) <= BUDGET * 1.001 < price(*target, 1.1 * strength):
        pytest.fail("the strength misses the budget; no speed is reported")
    if search is calibrated and passes > 12:
        pytest.fail(f"{passes} passes over the texts, more than 12; no speed is reported")
    benchmark.group = "one strength at a budget"
    benchmark.extra_info["passes over the texts"] = passes
    benchmark.pedantic(search, args=target, rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("subsets", [1, 2, 4, 8])
def bench_growth_with_settings(benchmark, subsets, target):
    model, tokenizer, vectors = target
    runs = [vectors.layers[i:j] for i in range(4) for j in range(i + 1, 5)][:subsets]
    results = es.calibrate(model, vectors, TEXTS, tokenizer, budget=BUDGET, layers=runs)
    if any(not r.divergence <= BUDGET or r.passes > 12 for r in results):
        pytest.fail("a strength misses the budget; no speed is reported")
    benchmark.group = "strengths of several layer subsets"
    benchmark.pedantic(
        es.calibrate,
        args=(model, vectors, TEXTS, tokenizer),
        kwargs={"budget": BUDGET, "layers": runs},
        rounds=5,
        warmup_rounds=1,
    )


def bench_controls_table(benchmark):
    benchmark.group = "all controls on the demo pair"
    found = []
    run = lambda: found.append(at_one_price(quiet=True)[0].comparison)  # noqa: E731
    with contextlib.redirect_stderr(io.StringIO()), one_thread():
        benchmark.pedantic(run, rounds=1)
    if "beats its controls" not in found[0].verdict(DEFAULT):
        pytest.fail("the default does not beat its controls")
