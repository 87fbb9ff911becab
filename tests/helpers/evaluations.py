"""An evaluation made up by hand, with a row of every kind, for the tests of what is shown."""

import torch

from expertsteer.evaluation.comparison import Comparison, ComparisonRow
from expertsteer.evaluation.evaluation import Answered, CurvePoint, Evaluation
from expertsteer.evaluation.statistics import Interval, PairedTest
from expertsteer.pairing.layer_pairs import LayerPairing


def against(difference, p):
    d = Interval(difference, difference - 0.1, difference + 0.1)
    return PairedTest(d, p / 2, "mcnemar", "two-sided", 40, 9, 2, 0, adjusted=p, family=4)


def row(name, kind="own", mean=0.5, tests=None, **settings):
    controls = ("unsteered", "random directions, best of 2")
    tests = {name: against(*test) for name, test in zip(controls, tests or ())}
    interval = Interval(mean, mean - 0.07, mean + 0.07)
    return ComparisonRow(name, kind, interval, (0.0, 1.0) * 20, against=tests, **settings)


def a_comparison(tests=((0.2, 0.001), (0.15, 0.01)), within=True, name="expert"):
    price = {"prices": {"other loss": 1.532}}
    rows = (
        row("unsteered", "none", 0.512, divergence=0.0, **price),
        row("random directions, mean of 2", "random", 0.5231, divergence=0.1, tried=8),
        row("random directions, best of 2", "random", 0.5, divergence=0.1, strength=-0.4),
        row("own PCA", mean=0.41, tests=((-0.2, 0.002), (-0.1, 0.6)), divergence=0.08, **price),
        row(name, "expert", 0.713, tests, divergence=0.097, within=within, layers=(1, 2), **price),
        row("prompt before the text", "prompt", 0.61, ((0.1, 0.3), (0.1, 0.4)), divergence=0.4)
        if within
        else row("weak", tests=((0.1, 0.3), (0.1, 0.4)), divergence=float("inf")),
    )
    drawn = tuple(
        row(f"random direction {i}", "random", 0.5, divergence=0.1, strength=0.3) for i in range(2)
    )
    return Comparison(rows, drawn, {"identity": "needs equal widths"}, 0.1, "kl", 3, 12.5)


def an_evaluation(**changes):
    matrix = torch.arange(12.0).reshape(3, 4) / 10
    pairing = LayerPairing(
        ((0, 1, 0.1), (2, 3, 1.1)), "lowest", matrix, effects=((0, 1, 0.25), (1, 1, -0.5))
    )
    names = ("expert", "own PCA", "random direction 0", "random direction 1")
    curves = {
        name: tuple(CurvePoint(s, 0.1 * s * s, 0.5 + 0.1 * i * s) for s in (0.0, 0.5, 1.0, 9.0))
        for i, name in enumerate(names)
    }
    values = {
        "task": "right answers on 40 questions",
        "method": "expert",
        "comparison": a_comparison(),
        "curves": curves,
        "pairing": pairing,
        "examples": answers(9, 4, 27),
        "health": {"warnings": ["layer 0 reconstructs badly"], "auc": {"layer 1": 0.93}},
        "excluded": {"rows without an answer": 3},
        "settings": {"seed": 0, "files": {"task": "t.jsonl"}, "command": ["run", "a b", "--x"]},
    }
    return Evaluation(**values | changes)


def answers(wins, losses, ties, text="question"):
    scores = [(0.0, 1.0)] * wins + [(1.0, 0.0)] * losses + [(1.0, 1.0)] * ties
    return tuple(
        Answered(f"{text} {i}", "yes", "no", "yes", before, after)
        for i, (before, after) in enumerate(scores)
    )
