"""What every step costs on real models: seconds and memory.

    python -m benchmarks.real.speed [--only PART ...] [--models FOLDER] [--out FOLDER]

writes ``real_speed_cpu.json`` and ``real_speed_cpu.md`` into the results. One thread, bfloat16.
Every part runs in a process of its own, whose memory is told. The states of a capture are compared
with the plain loop's, in single precision, before either is timed. `make real-models` fetches the
models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import expertsteer as es
from benchmarks import common, timing
from benchmarks.real.fetch import MODELS
from benchmarks.real.tasks import TASKS
from benchmarks.real.tasks.neutral import NEUTRAL
from benchmarks.registry import require
from benchmarks.states.cases import agree, plain
from expertsteer.models.loading import load
from expertsteer.pipeline.effects import AtHand
from expertsteer.support.allocator import keep_freed_memory

MODELS_OF = ("gemma", "qwen-0.5b", "qwen-1.5b")
EXPERT, TARGET = "qwen-0.5b", "gemma"
TASK, SEED, ITEMS = TASKS["sentiment"], 0, 200
CHECKED, ROUNDS = 24, 3  # texts compared in single precision, and rounds that are timed
BATCH = 16  # that of the loop in `benchmarks.states.cases`
METHODS = (
    "target's own mean difference",
    "target's own PCA",
    "target's own logistic probe",
    "target's own RFM",
    "expert: shuffled labels",
    "expert: ridge",
    "expert: Procrustes, highest pairs",
    "expert: Procrustes, lowest pairs",
)
PASSAGE = " ".join(NEUTRAL[:3])
FOUR = [(5,), (8,), (11,), (14,)]  # of the target's 18 layers
Figures = dict[str, Any]


class Bench:
    """Models, and captures that are kept in a folder from part to part."""

    def __init__(self, models: Path, kept: Path):
        self.models, self.kept = models, kept
        self.contrast = TASK.contrast(SEED)

    def model(self, name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
        network, words = load(self.models / name, device="cpu", dtype=dtype)
        words.padding_side = "right"  # as the plain loop reads it
        return network, words

    def states(self, name: str) -> es.HiddenStates:
        if not (self.kept / name).is_dir():
            made = es.capture(*self.model(name), self.contrast, progress=False)
            made.save_pretrained(self.kept / name)
        return es.HiddenStates.from_pretrained(self.kept / name)


def step(work: Callable[[], Any]) -> tuple[Any, Figures]:
    """What a step gives; its seconds, and GiB that the process holds before it and at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS:")
    result, seconds = timing.once(work)
    return result, {"seconds": seconds, "before": before, "peak": _memory("VmHWM:")}


def _memory(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 2**20


def check(bench: Bench, name: str) -> Figures:
    """States beside those of the loop over ``output_hidden_states``, in single precision."""
    few = es.ContrastSet(tuple(bench.contrast)[:CHECKED])
    exact = bench.model(name, torch.float32)
    found = es.capture(*exact, few, batch_size=BATCH, progress=False).states
    error = agree(found, plain(*exact, few))
    require(error < 1e-3, f"{name}: states are off by {error:.2g} of their norm")
    return {"error": error}


def capture(bench: Bench, name: str, long: bool = False) -> Figures:
    """Beside that loop, padded to the longest of a batch, and as the careful write it.

    What holds least comes first: memory that is freed stays with the process. ``long`` texts stand
    behind a passage, and are run once.
    """
    texts = behind(PASSAGE, bench.contrast) if long else bench.contrast
    network, words = bench.model(name)
    ours = lambda: es.capture(  # noqa: E731
        network, words, texts, batch_size=BATCH, progress=False
    )
    works = {
        "ours": ours,
        "loop, sorted, no head": lambda: plain(network, words, texts, True, False),
        "plain loop": lambda: plain(network, words, texts),
    }
    memory = {kind: step(work)[1] for kind, work in works.items()}
    if long:
        seconds = {kind: figures["seconds"] for kind, figures in memory.items()}
    else:
        taken = timing.interleave(works, least=ROUNDS)
        seconds = {kind: timing.middle(values)["median"] for kind, values in taken.items()}
    tokens = sum(len(words(example.text)["input_ids"]) for example in texts) / len(texts)
    return {"texts": len(texts), "tokens": tokens, "median": seconds, "memory": memory}


def behind(passage: str, contrast: es.ContrastSet) -> es.ContrastSet:
    texts = [f"{passage} {example.text}" for example in contrast]
    return es.ContrastSet.from_texts(texts, [example.label for example in contrast])


def fit(bench: Bench) -> Figures:
    """From captures: the four steps with the pairs by information, the health check, the effect."""
    expert, target = bench.states(EXPERT), bench.states(TARGET)
    settings = {"seed": SEED, "progress": False}
    works = {
        "fit without health": {"rule": "lowest", "health": False},
        "fit with health": {"rule": "lowest"},
    }
    found = {}
    for name, more in works.items():
        one = es.ExpertSteer(**settings, **more)
        found[name] = step(lambda one=one: one.fit_states(expert, target))[1]
    model = bench.model(TARGET)
    at_hand = AtHand(*model, bench.contrast, neutral=NEUTRAL[::2])
    one = es.ExpertSteer(**settings, health=False)
    work = lambda: one.fit_states(expert, target, at_hand=at_hand)  # noqa: E731
    vectors, found["fit, pairs by effect"] = step(work)
    work = lambda: es.calibrate(model[0], vectors, tokenizer=model[1])  # noqa: E731
    found["calibrate"] = step(work)[1]
    return found


def evaluate(bench: Bench, layers: list[tuple[int, ...]] | None) -> Figures:
    """Eight methods, five random directions and the unsteered model, 200 items."""
    expert, target = bench.states(EXPERT), bench.states(TARGET)
    rows = [*TASK.rows("validation"), *TASK.rows("test")][:ITEMS]
    choices = [{"prompt": p, "choices": [good, bad], "answer": 0} for p, good, bad in rows]
    task = es.MultipleChoice.from_rows(choices, joiner="")
    network, words = bench.model(TARGET)
    work = lambda: es.evaluate(  # noqa: E731
        network, words, task, expert, target, NEUTRAL, methods=METHODS, layers=layers,
        method=METHODS[-1], curves=False, progress=False,
    )  # fmt: skip
    result, figures = step(work)
    names = [row.name for row in result.comparison.rows]
    missing = set(METHODS) - set(names)
    require(not missing, f"{missing} have no row")
    return figures | {"rows": len(names), "items": ITEMS}


PARTS: dict[str, Callable[[Bench], Figures]] = {
    **{f"check {name}": partial(check, name=name) for name in MODELS_OF},
    **{f"capture {name}": partial(capture, name=name) for name in MODELS_OF},
    **{f"capture {n}, long texts": partial(capture, name=n, long=True) for n in (TARGET, EXPERT)},
    "fit": fit,
    "evaluate, four layers": partial(evaluate, layers=FOUR),
    "evaluate, all layers": partial(evaluate, layers=None),
}


def alone(part: str, options: argparse.Namespace, kept: str) -> Figures:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.real.speed", "--alone", part, "--kept", kept]
    command += ["--models", str(options.models)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def markdown(found: Figures) -> str:
    told = [f"{n}: {found[n]}  " for n in ("machine", "torch", "commit", "date", "command")]
    parts, rows = found["parts"], []
    for name, figures in parts.items():
        if name.startswith("check"):
            rows.append(
                [name, "", f"states differ by {figures['error']:.1g} of their norm", "", ""]
            )
        elif name.startswith("capture"):
            for kind, seconds in figures["median"].items():
                rate = f"{figures['texts'] / seconds:.1f} texts/s of {figures['tokens']:.0f} tokens"
                rate += f", {figures['median']['plain loop'] / seconds:.2f}x the plain loop"
                title = name if kind == "ours" else f"{name}, {kind}"
                rows.append([title, f"{seconds:.1f}", rate, *_room(figures["memory"][kind])])
        elif name == "fit":
            for kind, one in figures.items():
                rows.append([kind, f"{one['seconds']:.1f}", _share(parts, one), *_room(one)])
        else:
            what = f"{figures['rows']} rows, {figures['items']} items"
            rows.append([name, f"{figures['seconds']:.0f}", what, *_room(figures)])
    heads = ["step", "seconds", "", "GiB before", "GiB at most"]
    return "\n".join([*told, "", common.table(heads, rows), ""])


def _room(figures: Figures) -> list[str]:
    return [f"{figures[name]:.2f}" for name in ("before", "peak")]


def _share(parts: Figures, one: Figures) -> str:
    """Of what capturing both models took."""
    shares = []
    for texts, kind in (("short", ""), ("long", ", long texts")):
        captures = [parts.get(f"capture {name}{kind}") for name in (EXPERT, TARGET)]
        if None not in captures:
            seconds = sum(c["median"]["ours"] for c in captures)
            shares.append(f"{one['seconds'] / seconds:.1%} of both captures ({texts} texts)")
    return ", ".join(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--models", type=Path, default=MODELS, help="what `make real-models` wrote")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        keep_freed_memory()  # as the command line does
        print(json.dumps(PARTS[options.alone](Bench(options.models, options.kept))))
        return
    found: Figures = common.provenance() | {"command": common.command(), "parts": {}}
    file = options.out / "real_speed_cpu.json"
    if file.exists():  # parts that were measured before, of the same commit
        before = json.loads(file.read_text("utf-8"))
        found["parts"] = before["parts"] if before["commit"] == found["commit"] else {}
    with tempfile.TemporaryDirectory() as kept:
        for name in options.only:
            found["parts"][name] = alone(name, options, kept)
            print(name, found["parts"][name], flush=True)
            common.write_json(file, found)
    (options.out / "real_speed_cpu.md").write_text(markdown(found), "utf-8")


if __name__ == "__main__":
    main()
