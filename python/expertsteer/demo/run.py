"""The demo: four steps on two bundled checkpoints, beside everything that could explain them away.

`compare` makes its table, every row at the same price. Layers are chosen on the validation
questions; the table shows the test questions.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.table import Table

from ..evaluation.beside import answered_items
from ..evaluation.comparing import Compared, compared
from ..evaluation.comparison import Comparison
from ..evaluation.curves import strength_curves
from ..evaluation.evaluation import Evaluation
from ..evaluation.methods import OWN, PAPER, SHUFFLED
from ..models.scoring import mean_loss
from ..reporting.charts import can_plot, picture
from ..reporting.curve import chosen_points, draw_curve
from ..reporting.pairs import draw_pairs
from ..reporting.terminal import comparison_table, skipped_lines, wide_console
from ..states.in_memory import capture
from ..support.artifact_files import to_json
from ..support.numbers import fixed, seconds, setting
from ..support.paths import local_path
from ..support.writing import made_folder, write_text
from ..tasks import MultipleChoice, TaskOnModel
from . import contrast_set, load, world
from .files import question_rows

TASK = "How often the target gives the specialist's answer ({} ambiguous questions)"
BUDGET = 0.1  # nats per token of plain text
NEUTRAL_TEXTS = 40
RANDOM_DIRECTIONS = 5
SHOTS = (1, 2, 4, 8)
# Methods with a strength curve, beside the best random direction.
DRAWN = (PAPER, SHUFFLED, "expert: bare auto-encoder", *OWN)


def run_demo(
    out: str | os.PathLike, *, seed: int = 0, plot: bool | None = None, quiet: bool = False
) -> Evaluation:
    """Run the four steps and every control, print the table, save vectors, figures and pictures.

    Args:
        out: folder for ``vectors/``, ``results.json`` and, with matplotlib, two PNG files.
        seed: of the random directions, the shuffled labels, the random pairs and the tests.
        plot: draw the pictures; by default when matplotlib is installed.
        quiet: print nothing.

    Raises:
        ValueError: ``plot=True`` without matplotlib.
    """
    if plot and not can_plot():
        raise ValueError("plot=True needs matplotlib: pip install 'expertsteer[plot]'")
    plot, out, started = can_plot() if plot is None else plot, local_path(out, "out"), time.time()
    with one_thread():
        made, on = at_one_price(seed, quiet=quiet)
        evaluation = _evaluation(made, on, quiet)
    chosen = made.equal_price.chosen[PAPER].vectors
    chosen.with_evaluation(evaluation).save_pretrained(out / "vectors")
    if plot:
        points = chosen_points(evaluation)
        picture(out / "strength_curve.png", draw_curve, evaluation, points)
        picture(out / "layer_pairs.png", draw_pairs, evaluation.pairing)
    write_text(made_folder(out) / "results.json", to_json(evaluation.to_dict()) + "\n")
    if not quiet:
        _print(evaluation, out, time.time() - started)
    return evaluation


@contextmanager
def one_thread() -> Iterator[None]:
    """The models are so small that threads wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def at_one_price(
    seed: int = 0,
    *,
    random_directions: int = RANDOM_DIRECTIONS,
    methods: Sequence[str] | None = None,
    quiet: bool = False,
) -> tuple[Compared, TaskOnModel]:
    """The demo's comparison with what it was made from, and the questions it was measured on.

    Args:
        methods: some of ``METHODS`` of ``evaluation.methods``, by default all.
    """
    (model, tokenizer), contrast, shown = load("target"), contrast_set(), not quiet
    expert = capture(*load("expert"), contrast, progress=shown)
    target = capture(model, tokenizer, contrast, progress=shown)
    task = MultipleChoice.from_rows(question_rows())
    on = task.on(model, tokenizer, batch_size=64, progress=False)
    other = world.dialect_texts(world.OTHER)

    def other_loss(prompt: str) -> float:
        return float(mean_loss(model, tokenizer, other, context=prompt).mean())

    made = compared(
        model,
        expert,
        target,
        on.score,
        world.plain_texts(NEUTRAL_TEXTS, seed=3),
        tokenizer,
        budget=BUDGET,
        random=random_directions,
        methods=methods,
        prompts=few_shots(),
        prices={"loss, other": other_loss},
        seed=seed,
        progress=shown,
    )
    return made, on


def few_shots() -> list[str]:
    """Questions about the contrast set's animals with the specialist's answers, 1 to 8 of them."""
    rng, animals = random.Random("few shots"), world.groups()["contrast"]
    told = [world.answered(world.SPECIALIST, rng, animals) for _ in range(max(SHOTS))]
    return [" ".join(told[:count]) + " " for count in SHOTS]


def _evaluation(made: Compared, on: TaskOnModel, quiet: bool) -> Evaluation:
    comparison, count = made.comparison, len(on.items["test"])
    names = [*DRAWN, next(row.name for row in comparison.rows if "best of" in row.name)]
    answered, outcomes = answered_items(on, made, PAPER, count)
    return Evaluation(
        TASK.format(count),
        PAPER,
        comparison,
        strength_curves(made.equal_price, comparison, names, progress=not quiet),
        made.fitting.pairings[PAPER],
        tuple(answered),
        outcomes=outcomes,
    )


def _print(evaluation: Evaluation, out: Path, took: float) -> None:
    console, comparison = wide_console(), evaluation.comparison
    console.print(comparison_table(comparison, evaluation.task, PAPER))
    console.print(_random_scores(comparison))
    for sentence in skipped_lines(comparison):
        console.print(sentence)
    console.print(_samples(evaluation))
    console.print(evaluation.verdict)
    console.print(f"{seconds(took)}; vectors, figures and pictures are in {out}/")


def _random_scores(comparison: Comparison) -> str:
    quantiles = comparison.random_quantiles().items()
    shown = ", ".join(f"{setting(q)}: {fixed(value)}" for q, value in quantiles)
    return f"Quantiles of the random directions' scores: {shown}."


def _samples(evaluation: Evaluation) -> Table:
    """One test question of each attribute, about different animals, with and without steering."""
    table = Table(title="A few of them")
    for name in ("question", "unsteered", "steered", world.SPECIALIST, world.OTHER):
        table.add_column(name)
    every = slice(None, None, 5 * len(world.ATTRIBUTES) + 1)
    for item, question in zip(evaluation.examples[every], world.questions("test")[every]):
        answers = (question.answers[dialect] for dialect in world.DIALECTS)
        table.add_row(item.prompt, item.unsteered, item.steered, *answers)
    return table
