"""What the benchmarks of calibration compare before they time: what a strength costs."""

from __future__ import annotations

import contextlib
import io
import math

import torch

import expertsteer as es
from benchmarks.registry import ByWork, Case, Gate, benchmark, called
from expertsteer import demo
from expertsteer.calibration.divergence import Divergence, neutral_texts
from expertsteer.demo.run import at_one_price
from expertsteer.evaluation.methods import PAPER

BUDGET, PASSES, TEXTS = 0.1, 12, 20


def target(texts: int):
    """The demo's target, random vectors at its layers, and neutral texts."""
    model, tokenizer = demo.load("target")
    drawn = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    vectors = dict(enumerate(drawn / drawn.norm(dim=1, keepdim=True)))
    steering = es.SteeringVectors(vectors, dict.fromkeys(vectors, 24.0))
    return model, tokenizer, steering, demo.world.plain_texts(texts, seed=3)


def price(model, tokenizer, vectors, texts, strength):
    divergence = Divergence(model, neutral_texts(model, texts, tokenizer), "kl", 1, 64)
    with es.attach(model, vectors, strength=1.0, mode="slot") as steering:
        return divergence(steering, 0, [strength])[0]


def prices(model, tokenizer, vectors, texts, strength):
    """Of the strength, and of a tenth more."""
    both = [price(model, tokenizer, vectors, texts, s) for s in (strength, 1.1 * strength)]
    return torch.tensor(both)


def bisected(model, tokenizer, vectors, texts):
    """The strength, and how many passes over the texts it took: one strength at a time from the
    same start, until the bracket is as narrow as that of `calibrate`."""
    divergence = Divergence(model, neutral_texts(model, texts, tokenizer), "kl", 1, 64)
    low, high, place = 0.0, math.inf, 0.2
    with es.attach(model, vectors, strength=1.0, mode="slot") as steering:
        while not low or high / low > 1.02:
            within = divergence(steering, 0, [place])[0] <= BUDGET
            low, high = (place, high) if within else (low, place)
            place = 2 * low if high == math.inf else (low + high) / 2
    return low, divergence.passes


def calibrated(model, tokenizer, vectors, texts):
    result = es.calibrate(model, vectors, texts, tokenizer, budget=BUDGET, batch_size=64)
    return result.strength, result.passes


def over_budget(found, most: float) -> float:
    """By what share the price is over the budget; infinite where a tenth more would not be, or
    where more than ``most`` passes were needed."""
    (cost, more), passes = found
    if not more > BUDGET * 1.001 or passes > most:
        return math.inf
    return float(cost / BUDGET - 1)


PRICED = Gate("what the strength costs with the budget", 1e-3, over_budget, "of it")


@benchmark("calibration.search", gate=PRICED, smallest={"texts": 4})
def SEARCH(stack, texts=TEXTS) -> Case:
    """The peer is the usual way: bisection."""
    given = target(texts)
    works = {"calibrated": lambda: calibrated(*given), "bisected": lambda: bisected(*given)}
    results = called(works)
    figures = {f"passes, {name}": passes for name, (_, passes) in results["found"].items()}
    found = {name: (prices(*given, strength), passes) for name, (strength, passes) in
             results["found"].items()}  # fmt: skip
    expected = ByWork(calibrated=PASSES, bisected=math.inf)
    return Case(works, found, expected, (), figures, results["first"])


@benchmark("calibration.subsets", gate=PRICED, smallest={"subsets": 2, "texts": 4})
def SUBSETS(stack, subsets, texts=TEXTS) -> Case:
    """Strengths of several subsets of layers in one call."""
    model, tokenizer, vectors, given = target(texts)
    runs = [vectors.layers[i:j] for i in range(4) for j in range(i + 1, 5)][:subsets]

    def work():
        return es.calibrate(model, vectors, given, tokenizer, budget=BUDGET, layers=runs)

    found = {}
    for run, result in zip(runs, work(), strict=True):
        some = es.SteeringVectors({i: vectors.vectors[i] for i in run}, dict.fromkeys(run, 24.0))
        costs = prices(model, tokenizer, some, given, result.strength)
        found[f"layers {run}"] = costs, result.passes
    return Case({"calibrate": work}, found, PASSES, ("calibrate",))


@benchmark(
    "calibration.controls",
    gate=Gate("the default's verdict", 0.0, lambda found, phrase: phrase not in found, "of 1"),
    smallest={"methods": (PAPER,), "random": 2},
)
def CONTROLS(stack, methods=None, random=None) -> Case:
    """A whole table of controls at equal price on the demo pair."""
    options = {} if random is None else {"random_directions": random}

    def work():
        with contextlib.redirect_stderr(io.StringIO()):
            made, _ = at_one_price(methods=methods, quiet=True, **options)
        return made.comparison

    works = {"controls": work}
    results = called(works, lambda comparison: comparison.verdict(PAPER))
    return Case(works, expected="beats its controls", **results)
