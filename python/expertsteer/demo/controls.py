"""The demo's controls at equal price: every method at the same divergence on neutral text."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import report
from ..baselines import DEFAULT
from ..comparison import Comparison
from ..controls import compare
from ..states.in_memory import capture
from ..support.artifact_files import to_json
from ..support.numbers import fixed, seconds, setting
from ..support.paths import local_path
from ..support.text import SafeConsole
from ..support.writing import made_folder, replacing
from . import contrast_set, load, world
from .run import PLAIN_BUDGET, RANDOM_DIRECTIONS, Bench, one_thread

NEUTRAL_TEXTS = 40
SHOTS = (1, 2, 4, 8)


def run_controls(
    out: str | os.PathLike,
    *,
    seed: int = 0,
    budget: float = PLAIN_BUDGET,
    random_directions: int = RANDOM_DIRECTIONS,
    methods: Sequence[str] | None = None,
    quiet: bool = False,
) -> Comparison:
    """Measure every method and control at one divergence budget; print the table.

    Args:
        out: folder for ``controls.json``.
        seed: of the random directions, shuffled labels, random pairs and tests.
        budget: KL from the unsteered model in nats per token of plain text.
        methods: some of `baselines.METHODS`, the default among them; by default all.
        quiet: print nothing.
    """
    with one_thread():
        comparison = _compared(seed, budget, random_directions, methods, quiet)
    folder = local_path(out, "out")
    if not quiet:  # before anything that may fail
        _print(comparison, folder)
    with replacing(made_folder(folder) / "controls.json") as temporary:
        temporary.write_text(to_json(comparison.to_dict()) + "\n", "utf-8")
    return comparison


def _compared(
    seed: int, budget: float, random_directions: int, methods: Sequence[str] | None, quiet: bool
) -> Comparison:
    bench, contrast = Bench(), contrast_set()
    expert = capture(*load("expert"), contrast, progress=not quiet)
    target = capture(bench.model, bench.tokenizer, contrast, progress=not quiet)

    def score(split: str, prompt: str) -> Tensor:
        return torch.stack(bench.answers(split, prompt), dim=1)

    return compare(
        bench.model,
        expert,
        target,
        score,
        world.plain_texts(NEUTRAL_TEXTS, seed=3),
        bench.tokenizer,
        budget=budget,
        random=random_directions,
        methods=methods,
        prompts=few_shots(),
        prices={"loss,\nother": lambda prompt: bench.loss(bench.other, prompt)},
        seed=seed,
        progress=not quiet,
    )


def few_shots() -> list[str]:
    """Questions about the contrast set's animals with the specialist's answers, 1 to 8 of them."""
    rng, animals = random.Random("few shots"), world.groups()["contrast"]
    told = [world.answered(world.SPECIALIST, rng, animals) for _ in range(max(SHOTS))]
    return [" ".join(told[:count]) + " " for count in SHOTS]


def _print(comparison: Comparison, folder: Path) -> None:
    console = SafeConsole()
    if not console.is_terminal:  # a log has no edge to wrap at
        console.width = 120
    title = "How often the target gives the specialist's answer, all at the same price"
    console.print(report.comparison_table(comparison, title))
    shares = ", ".join(
        f"{setting(q)}: {fixed(v)}" for q, v in comparison.random_quantiles().items()
    )
    console.print(f"Quantiles of the random directions' scores: {shares}.")
    for name, reason in comparison.skipped.items():
        console.print(f"Not measured: {name} ({reason}).")
    console.print(comparison.verdict(DEFAULT))
    console.print(f"{seconds(comparison.seconds)}; all figures are in {folder}/controls.json")
