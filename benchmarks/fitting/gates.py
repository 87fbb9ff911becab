"""What the benchmark of the health check compares before it times: it leaves a fit as it is."""

from __future__ import annotations

import torch

import expertsteer as es
from benchmarks.registry import Case, Gate, benchmark, called
from expertsteer import demo

Captures = tuple[es.HiddenStates, es.HiddenStates]
EXAMPLES = 600


def captured(seed: int, examples: int = EXAMPLES) -> Captures:
    """Both models of the demo over one contrast set."""
    contrast = demo.contrast_set(examples, seed)
    return tuple(
        es.capture(*demo.load(name), contrast, progress=False) for name in ("expert", "target")
    )


def made_up(layers: int, n: int, width: int, seed: int) -> es.HiddenStates:
    """Captures of a shared cause of 64 dimensions."""
    cause = torch.randn(n, 64, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(layers, 64, width, generator=generator) / 8
    noise = 0.3 * torch.randn(layers, n, width, generator=generator)
    states = (cause * torch.linspace(3, 0.3, 64)) @ mixing + noise
    return es.HiddenStates(states, (cause[:, 3] > 0).long(), keys=torch.arange(n))


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


@benchmark(
    "fitting.health",
    gate=Gate("vectors fitted with the check and without", 0.0, largest_difference),
    smallest={"layers": 2, "n": 60, "width": 16},
)
def HEALTH(stack, layers=None, n=EXAMPLES, width=None) -> Case:
    """A fit from captures with and without its check; without ``layers`` of the demo's captures."""
    if layers is None:
        states = captured(0, n)
    else:
        states = tuple(made_up(layers, n, width, seed) for seed in (1, 2))

    def fitted(health: bool):
        return es.ExpertSteer(progress=False, rule="lowest", health=health).fit_states(*states)

    works = {"fit": lambda: fitted(False), "fit and check": lambda: fitted(True)}
    results = called(works, lambda fit: torch.stack([*fit.vectors.values()]))
    return Case(works, expected=results["found"]["fit"], **results)
