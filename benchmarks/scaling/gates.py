"""What the check of the operation counts compares before it times: with double precision."""

from __future__ import annotations

import torch

import expertsteer as es
from benchmarks.registry import ByWork, Case, Gate, benchmark, called

LAYERS = (6, 4)
PAIRS = ((1, 0, 0.0), (3, 2, 0.0))


def made_up(layers: int, n: int, width: int, seed: int, dtype=torch.float32) -> es.HiddenStates:
    generator = torch.Generator().manual_seed(seed)
    cause = torch.randn(n, 48, generator=torch.Generator().manual_seed(0))
    mixing = torch.randn(layers, 48, width, generator=generator)
    states = cause @ mixing + torch.randn(layers, n, width, generator=generator)
    labels = (cause[:, 0] > 0).long()
    return es.HiddenStates(states.to(dtype), labels, keys=torch.arange(n))


def works_of(expert: es.HiddenStates, target: es.HiddenStates) -> dict:
    """The steps that `benchmarks.scaling` adds up."""
    pairing = es.LayerPairing(PAIRS)
    alignment = es.align(expert, target, pairing=pairing)
    return {
        "information of all pairs": lambda: es.mutual_information(expert.states, target.states),
        "align the chosen pairs": lambda: es.align(expert, target, pairing=pairing),
        "fit the directions": lambda: es.fit_vectors(expert, target, alignment, pairing),
    }


def compared(result) -> torch.Tensor:
    """What tells one result from another: nats, explained variances, directions."""
    if isinstance(result, es.Alignment):
        return result.explained_variance.double()
    if isinstance(result, es.SteeringVectors):
        return torch.stack([*result.vectors.values()]).double()
    return result.double()


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


@benchmark(
    "scaling.steps",
    gate=Gate("nats, variances, directions with double precision", 0.01, largest_difference),
    smallest={"n": 120, "width_e": 24, "width_t": 16},
)
def STEPS(stack, n, width_e, width_t) -> Case:
    """The steps of a fit at a size that fits here."""
    single, double = (
        works_of(made_up(LAYERS[0], n, width_e, 1, dtype), made_up(LAYERS[1], n, width_t, 2, dtype))
        for dtype in (torch.float32, torch.float64)
    )
    expected = ByWork({name: compared(work()) for name, work in double.items()})
    return Case(single, expected=expected, **called(single, compared))
