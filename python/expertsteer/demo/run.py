"""The demo: four steps on two bundled checkpoints, beside everything that could explain them away.

Layers and strength of every row are chosen on the validation questions by one rule; the table shows
the test questions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from .. import report
from ..alignment.aligning import align
from ..evaluate import choice_probabilities, mean_loss
from ..fitting.fitting import fit_vectors
from ..models.encoding import encode
from ..pairing.information import mutual_information
from ..pairing.layer_pairs import LayerPairing
from ..pairing.rules import pair_layers
from ..states.in_memory import capture
from ..states.states import HiddenStates
from ..statistics import Interval, bootstrap_interval, corrected, paired_test, verdict
from ..steering.steering import Steering, attach
from ..support.artifact_files import to_json
from ..support.numbers import seconds
from ..support.paths import local_path
from ..support.progress import progress
from ..support.tensors import integers, normal_draws
from ..support.text import SafeConsole
from ..support.writing import replacing
from ..vectors.vectors import SteeringVectors
from . import contrast_set, load, world

STRENGTHS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5)
PLAIN_BUDGET = 0.1  # nats per token
RANDOM_DIRECTIONS = 5
DEFAULT = "expert: Procrustes + RFM (default)"


@dataclass(frozen=True)
class Row:
    """One method: what it did on the test questions, and the settings validation chose.

    ``accuracy`` counts questions whose most probable answer is the specialist's; ``probability``
    is that answer's, among all choices; losses are in nats per token. ``right`` tells it for every
    question: 1 or 0, or the share of several directions.
    """

    name: str
    accuracy: Interval
    probability: Interval
    other_loss: float
    plain_loss: float
    layers: tuple[int, ...] = ()
    strength: float | None = None
    is_default: bool = False
    right: tuple[float, ...] = ()


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured."""

    rows: list[Row]
    samples: list[dict[str, str]]
    seconds: float
    seed: int

    def row(self, name: str) -> Row:
        return next(r for r in self.rows if r.name == name)

    def verdict(self) -> str:
        """One sentence on the default against the unsteered model and the best random direction.

        P-values are corrected for those two tests of every method in the table.
        """
        controls = self.rows[0], next(r for r in self.rows if "best of" in r.name)
        methods = [r for r in self.rows[1:] if not r.name.startswith("random")]
        tests = {
            (row.name, control.name): paired_test(row.right, control.right, seed=self.seed)
            for row in methods
            for control in controls
        }
        tests = corrected(tests)
        return verdict(DEFAULT, {c.name: tests[DEFAULT, c.name] for c in controls})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict()}


class Bench:
    """The target model with the questions and texts that every method is measured on."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load("target")
        self.questions = {name: world.questions(name) for name in ("validation", "test")}
        self.other = world.dialect_texts(world.OTHER)
        self.plain = world.plain_texts()
        self.held_plain = world.plain_texts(40, seed=3)  # for choosing, never reported

    def answers(self, split: str, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Whether the specialist's answer is on top, and its probability; ``[N]`` each.

        ``prefix`` is put before each question.
        """
        questions = self.questions[split]
        prompts = [prefix + q.prompt for q in questions]
        choices = [[f" {choice}" for choice in q.choices] for q in questions]
        belief = choice_probabilities(self.model, self.tokenizer, prompts, choices)
        places = [q.choices.index(q.answers[world.SPECIALIST]) for q in questions]
        own = integers(places)
        return (belief.argmax(dim=1) == own).double(), belief.gather(1, own.unsqueeze(1))[:, 0]

    def loss(self, texts: list[str], prefix: str = "") -> float:
        return float(mean_loss(self.model, self.tokenizer, texts, context=prefix).mean())

    def measure(self, name: str, **settings: Any) -> Row:
        """The test figures of the model as it is now."""
        right, probability = self.answers("test")
        return Row(
            name,
            bootstrap_interval(right),
            bootstrap_interval(probability),
            self.loss(self.other),
            self.loss(self.plain),
            right=tuple(right.tolist()),
            **settings,
        )

    def choose(self, vectors: SteeringVectors, signs: tuple[int, ...] = (1,)):
        """Layers and strength with the best validation accuracy; ties go to probability.

        Every run of neighbouring layers, from one to all, at every strength. Settings that cost
        more than `PLAIN_BUDGET` on plain text are passed over: breaking a model is not steering it.
        """
        candidates, count = [], len(vectors.layers)
        runs = [vectors.layers[i:j] for i in range(count) for j in range(i + 1, count + 1)]
        for layers in runs:
            with attach(self.model, vectors.select(layers)) as steering:
                for strength in (sign * s for s in STRENGTHS for sign in signs):
                    steering.set(strength=strength)
                    right, probability = self.answers("validation")
                    score = float(right.mean()), float(probability.mean())
                    candidates.append((score, layers, strength))
        limit = self.loss(self.held_plain) + PLAIN_BUDGET
        for _, layers, strength in sorted(candidates, key=lambda c: c[0], reverse=True):
            with attach(self.model, vectors.select(layers), strength=strength):
                if self.loss(self.held_plain) <= limit:
                    return layers, strength
        return runs[0], signs[0] * STRENGTHS[0]  # the weakest there is

    def steered_row(self, name: str, vectors: SteeringVectors, **settings: Any) -> Row:
        layers, strength = self.choose(vectors)
        with attach(self.model, vectors.select(layers), strength=strength):
            return self.measure(name, layers=layers, strength=strength, **settings)


def run_demo(
    out: str | os.PathLike, *, seed: int = 0, plot: bool | None = None, quiet: bool = False
) -> DemoResult:
    """Run the four steps and every control, print the table, save vectors, figures and pictures.

    Args:
        out: folder for ``vectors/``, ``results.json`` and, with matplotlib, two PNG files.
        seed: of the random directions and of the shuffled labels.
        plot: draw the pictures; by default when matplotlib is installed.
        quiet: print nothing.

    Raises:
        ValueError: ``plot=True`` without matplotlib.
    """
    if plot and not report.can_plot():
        raise ValueError("plot=True needs matplotlib: pip install 'expertsteer[plot]'")
    plot = report.can_plot() if plot is None else plot
    with one_thread():
        return _run(local_path(out, "out"), seed, plot, quiet)


@contextmanager
def one_thread() -> Iterator[None]:
    """The models are so small that threads wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, seed: int, plot: bool, quiet: bool) -> DemoResult:
    started, bench = time.perf_counter(), Bench()
    contrast = contrast_set()
    expert_model, expert_tokenizer = load("expert")
    expert = capture(expert_model, expert_tokenizer, contrast, progress=not quiet)
    target = capture(bench.model, bench.tokenizer, contrast, progress=not quiet)
    information = mutual_information(expert, target)
    pairing = pair_layers(information, k=len(target.layers), rule="lowest")
    methods = _methods(expert, target, pairing, seed)
    rows = [bench.measure("unsteered"), *_random_rows(bench, target, seed, quiet)]
    for name, vectors in progress(methods.items(), "methods", not quiet):
        rows.append(bench.steered_row(name, vectors, is_default=name == DEFAULT))
    chosen = next(row for row in rows if row.is_default)
    vectors = _with_figures(methods[DEFAULT].select(chosen.layers), rows)
    samples = _samples(bench, vectors, chosen.strength)
    vectors.save_pretrained(out / "vectors")
    if plot:
        layers = expert.layers, target.layers
        report.heat_map(out / "layer_pairs.png", information, pairing, *layers)
        curves = _curves(bench, methods, rows, quiet)
        report.strength_curve(
            out / "strength_curve.png", (0.0, *STRENGTHS), curves, rows[0].accuracy.mean
        )
    result = DemoResult(rows, samples, time.perf_counter() - started, seed)
    _write_json(out / "results.json", result)
    if not quiet:
        _print(result, out, len(bench.questions["test"]))
    return result


def _methods(
    expert: HiddenStates, target: HiddenStates, pairing: LayerPairing, seed: int
) -> dict[str, SteeringVectors]:
    """Every fitted method by the name its row has, the default last."""
    own, same = align(target, target, "identity"), LayerPairing.same(target.layers)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(expert), generator=generator, device="cpu")
    shuffled = [replace(s, labels=s.labels[order]) for s in (expert, target)]
    procrustes = align(expert, target)
    return {
        "target's own mean difference": fit_vectors(target, target, own, same, "mean_difference"),
        "target's own RFM": fit_vectors(target, target, own, same),
        "expert: shuffled labels": fit_vectors(*shuffled, procrustes, pairing),
        "expert: bare auto-encoder + RFM": fit_vectors(
            expert, target, align(expert, target, rotation="none"), pairing
        ),
        "expert: ridge + RFM": fit_vectors(expert, target, align(expert, target, "ridge"), pairing),
        DEFAULT: fit_vectors(expert, target, procrustes, pairing),
    }


def _random_rows(bench: Bench, target: HiddenStates, seed: int, quiet: bool) -> list[Row]:
    """Random directions of the same norm: their mean, and the best of them on the test itself.

    They have no sign of their own, so both are tried: more freedom than any fitted row gets.
    """
    scales = {layer: target.scale(layer) for layer in target.layers}
    rows, answers = [], []
    for i in progress(range(RANDOM_DIRECTIONS), "random directions", not quiet):
        drawn = normal_draws(len(target.layers), target.width, seed=1000 * seed + i)
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        vectors = SteeringVectors(dict(zip(target.layers, drawn)), scales)
        layers, strength = bench.choose(vectors, signs=(1, -1))
        with attach(bench.model, vectors.select(layers), strength=strength):
            row = bench.measure(f"random direction {i}", layers=layers, strength=strength)
            answers.append(torch.stack(bench.answers("test")))
        rows.append(row)
    # Per question first: the interval of the mean is over questions, like every other.
    right, probability = torch.stack(answers).mean(dim=0)
    mean = Row(
        f"random directions, mean of {len(rows)}",
        bootstrap_interval(right),
        bootstrap_interval(probability),
        sum(r.other_loss for r in rows) / len(rows),
        sum(r.plain_loss for r in rows) / len(rows),
        right=tuple(right.tolist()),
    )
    best = max(rows, key=lambda r: r.accuracy.mean)
    return [mean, replace(best, name=f"random directions, best of {len(rows)}")]


def _with_figures(vectors: SteeringVectors, rows: list[Row]) -> SteeringVectors:
    """Keep what was measured with the vectors themselves."""
    measured = {
        row.name: {"accuracy": row.accuracy.mean, "other_loss": row.other_loss} for row in rows
    }
    return replace(vectors, metadata=vectors.metadata | {"demo": measured})


def _samples(bench: Bench, vectors: SteeringVectors, strength: float) -> list[dict[str, str]]:
    """One test question of each attribute, about different animals, with and without steering."""
    with attach(bench.model, vectors) as steering:
        return [
            {
                "question": q.prompt,
                "unsteered": _answer(bench, steering, q.prompt, 0.0),
                "steered": _answer(bench, steering, q.prompt, strength),
                **q.answers,
            }
            for q in bench.questions["test"][:: 5 * len(world.ATTRIBUTES) + 1]
        ]


def _answer(bench: Bench, steering: Steering, prompt: str, strength: float) -> str:
    steering.set(strength=strength)
    ids = torch.tensor(encode(bench.tokenizer, [prompt]), dtype=torch.int64, device="cpu")
    mask = torch.ones_like(ids)
    new = bench.model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    return bench.tokenizer.decode(new[0, ids.shape[1] :])


def _curves(bench: Bench, methods: dict[str, SteeringVectors], rows: list[Row], quiet: bool):
    """Accuracy and price over the strengths, at the layers each method was given."""
    names = [DEFAULT, "target's own RFM", "target's own mean difference"]
    names += ["expert: bare auto-encoder + RFM", "expert: shuffled labels"]
    layers = {row.name: row.layers for row in rows}
    curves = {}
    for name in progress(names, "strength curve", not quiet):
        points = []
        with attach(bench.model, methods[name].select(layers[name])) as steering:
            for strength in (0.0, *STRENGTHS):
                steering.set(strength=strength)
                accuracy = float(bench.answers("test")[0].mean())
                points.append((accuracy, bench.loss(bench.other)))
        curves[name] = points
    return curves


def _write_json(path: Path, result: DemoResult) -> None:
    with replacing(path) as temporary:
        temporary.write_text(to_json(result.to_dict()) + "\n", "utf-8")


def _print(result: DemoResult, out: Path, questions: int) -> None:
    console = SafeConsole()
    if not console.is_terminal:  # a log has no edge to wrap at
        console.width = 100
    title = f"How often the target gives the specialist's answer ({questions} ambiguous questions)"
    console.print(report.results_table(result.rows, title))
    answers = Table(title="A few of them")
    for name in ("question", "unsteered", "steered", world.SPECIALIST, world.OTHER):
        answers.add_column(name)
    for sample in result.samples:
        answers.add_row(*(sample[column.header] for column in answers.columns))
    console.print(answers)
    console.print(result.verdict())
    console.print(f"{seconds(result.seconds)}; vectors, figures and pictures are in {out}/")
