"""What the benchmarks of information compare before they time, at any size."""

from __future__ import annotations

from functools import lru_cache

import torch

from benchmarks.pairing import cases
from benchmarks.registry import ByWork, Case, Gate, benchmark, called
from expertsteer import ops
from expertsteer.ops.information import reference as reference_mi

OURS = "expertsteer"
SMALL = {"layers": 2, "n": 200, "d": 64}


def largest_difference(found, expected) -> float:
    return float((torch.as_tensor(found) - expected).abs().max())


states = lru_cache(1)(cases.states)


@lru_cache(1)
def codes(layers: int, n: int, d: int) -> list:
    return [cases.project(side) for side in states(layers, n, d)]


@benchmark(
    "pairing.gaussian_pairs",
    gate=Gate("nats of all pairs, with slogdet pair by pair", 1e-3, largest_difference, "nats"),
    smallest=SMALL,
)
def GAUSSIAN_PAIRS(stack, layers, n, d, device="cpu") -> Case:
    """After the projection, on either half."""
    on_cpu = codes(layers, n, d)
    x, y = ([half.to(device) for half in side] for side in on_cpu)
    works = {OURS: lambda: cases.pairs(x, y), "loop": lambda: cases.pairs_slogdet(*on_cpu)}
    results = called(works, torch.Tensor.cpu)
    return Case(works, expected=results["found"]["loop"], **results)


def information_lost(found, expected) -> float:
    """The largest share of a pair's information that is missing."""
    return float(((expected - found) / expected).max())


@benchmark(
    "pairing.projection",
    gate=Gate("nats that a pair keeps, with scikit-learn's PCA", 0.03, information_lost, "of them"),
    smallest=SMALL,
)
def PROJECTION(stack, layers, n, d) -> Case:
    both = states(layers, n, d)
    works = {
        OURS: lambda: [cases.project(side) for side in both],
        "PCA": lambda: [cases.project_sklearn(side) for side in both],
    }
    results = called(works, lambda sides: cases.pairs_slogdet(*sides))
    found = results["found"]
    figures = {f"mean nats, {name}": float(nats.mean()) for name, nats in found.items()}
    return Case(works, expected=found["PCA"], figures=figures, **results)


@benchmark(
    "pairing.ksg",
    gate=Gate("nats of some pairs, with one k-d tree per pair", 1e-6, largest_difference, "nats"),
    smallest=SMALL | {"r": 4, "sample": 4},
)
def KSG(stack, layers, n, d, r, sample=16) -> Case:
    """The trees go over ``sample`` pairs: all of them would take minutes a round."""
    x, y = (cases.ksg_codes(side, r) for side in states(layers, n, d))
    chosen = [(i % layers, (3 * i) % layers) for i in range(sample)]
    lines, columns = zip(*chosen)
    works = {
        OURS: lambda: ops.ksg_information(x, y),
        "k-d tree": lambda: [cases.ksg_tree(x[a], y[b]) for a, b in chosen],
    }
    trees = torch.tensor(works["k-d tree"]())
    found = {OURS: works[OURS]()[list(lines), list(columns)], "k-d tree": trees}
    return Case(works, found, trees)


@benchmark(
    "pairing.ksg_one_component",
    gate=Gate("nats of all pairs, with scikit-learn's (it adds noise)", 0.2, largest_difference),
    smallest=SMALL,
)
def KSG_ONE_COMPONENT(stack, layers, n, d) -> Case:
    x, y = (cases.ksg_codes(side, 1) for side in states(layers, n, d))
    works = {
        OURS: lambda: ops.ksg_information(x, y),
        "scikit-learn": lambda: cases.ksg_sklearn(x, y),
    }
    results = called(works)
    return Case(works, expected=results["found"]["scikit-learn"], **results)


@benchmark(
    "pairing.growth",
    gate=Gate("nats of the first pair, by a k-d tree and by slogdet", 1e-3, largest_difference),
    smallest={"layers": 2, "n": 100, "r": 2},
)
def GROWTH(stack, layers, n, r) -> Case:
    """Both estimators on codes of known information."""
    x, y = cases.planted_codes(n, r, 1.0, layers)
    works = {
        "ksg": lambda: ops.ksg_information(x, y),
        "gaussian": lambda: ops.gaussian_information(x, y),
    }
    first = [x[:1].double()], [y[:1].double()]
    expected = ByWork(
        ksg=torch.tensor(cases.ksg_tree(x[0], y[0])), gaussian=cases.slogdet(*first)[0, 0]
    )
    return Case(works, expected=expected, **called(works, lambda nats: nats[0, 0]))


@benchmark(
    "pairing.ksg_backend",
    gate=Gate("counts of neighbours, with the reference's", 0.0, largest_difference),
    smallest={"layers": 2, "n": 80, "backend": "native", "device": "cpu"},
)
def KSG_BACKEND(stack, layers, n, backend, device="cuda") -> Case:
    x, y = (side.to(device) for side in cases.planted_codes(n, 8, 2.0, layers))
    few = [reference_mi.max_norm_distances(side[:2], range(64)) for side in (x, y)]
    counts, expected = (
        torch.stack(ops.ksg_counts(*few, 3, backend=name)) for name in (backend, "reference")
    )
    works = {backend: lambda: ops.ksg_information(x, y, backend=backend)}
    return Case(works, {backend: counts}, expected)
