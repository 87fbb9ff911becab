"""How often the health check is right, and what it costs: results/health_cpu.md.

``python -m benchmarks.fitting.health_table``: fits on the demo pair over four contrast sets,
sound ones and ones that were spoilt on purpose, and the check's share of a fit's processor time.
"""

from __future__ import annotations

import statistics
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

import expertsteer as es
from expertsteer import demo

RESULT = Path(__file__).parents[1] / "results" / "health_cpu.md"
SETS, EXAMPLES = 4, 600
FITS = {600: 4, 300: 8, 160: 8, 80: 8}  # examples -> fits

Captures = tuple[es.HiddenStates, es.HiddenStates]
Spoil = Callable[[es.HiddenStates, es.HiddenStates, torch.Tensor], Captures]


def captured(seed: int) -> Captures:
    """Both models of the demo over one contrast set."""
    contrast = demo.contrast_set(EXAMPLES, seed)
    return tuple(es.capture(*demo.load(name), contrast) for name in ("expert", "target"))


def some_pairs(states: es.HiddenStates, n: int, seed: int) -> es.HiddenStates:
    """n examples, both sides of every pair that is drawn."""
    order = torch.randperm(EXAMPLES // 2, generator=torch.Generator().manual_seed(seed))[: n // 2]
    return states.take(torch.stack([2 * order, 2 * order + 1], dim=1).flatten())


def _order(states: es.HiddenStates, seed: int) -> torch.Tensor:
    return torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))


def sound(expert, target, seed) -> Captures:
    """The expert's layers that separate the classes (its layer 0 does not)."""
    return replace(expert, states=expert.states[1:], layers=expert.layers[1:]), target


def shuffled(expert, target, seed) -> Captures:
    labels = expert.labels[_order(expert, seed)]
    return replace(expert, labels=labels), replace(target, labels=labels)


def random_states(expert, target, seed) -> Captures:
    generator = torch.Generator().manual_seed(seed)
    return replace(expert, states=torch.randn(expert.states.shape, generator=generator)), target


def permuted(expert, target, seed) -> Captures:
    return replace(expert, states=expert.states[:, _order(expert, seed)]), target


def unchanged(expert, target, seed) -> Captures:
    return expert, target


CASES: dict[str, tuple[Spoil, dict]] = {
    "sound": (sound, {}),
    "shuffled labels": (shuffled, {}),
    "random expert states": (random_states, {}),
    "expert's rows permuted": (permuted, {}),
    "bare auto-encoder": (unchanged, {"rotation": "none"}),
}


def verdicts() -> Iterator[str]:
    """A row per case: how many fits passed in silence, and which checks spoke."""
    sets = [captured(seed) for seed in tqdm(range(SETS), desc="captures")]
    yield "| fits | silent | what the check named |"
    yield "|---|---|---|"
    for name, (spoil, options) in CASES.items():
        silent, total, named = 0, 0, Counter()
        for n, fits in FITS.items():
            for i in range(fits):
                states = [some_pairs(side, n, i) for side in sets[i % SETS]]
                pipeline = es.ExpertSteer(progress=False, seed=i, **options)
                pipeline.fit_states(*spoil(*states, i))
                total, silent = total + 1, silent + pipeline.health_.ok
                named.update({finding.check for finding in pipeline.health_.findings})
        checks = ", ".join(f"{check} {count}" for check, count in named.most_common())
        yield f"| {name} | {silent} of {total} | {checks or '-'} |"


def made_up(layers: int, n: int, width: int, seed: int) -> es.HiddenStates:
    """Captures of a shared cause of 64 dimensions."""
    cause = torch.randn(n, 64, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(layers, 64, width, generator=generator) / 8
    noise = 0.3 * torch.randn(layers, n, width, generator=generator)
    states = (cause * torch.linspace(3, 0.3, 64)) @ mixing + noise
    return es.HiddenStates(states, (cause[:, 3] > 0).long(), keys=torch.arange(n))


def costs() -> Iterator[str]:
    """A row per size: processor seconds of a fit from captures, and of the check."""
    yield "| captures | fit | check | share |"
    yield "|---|---|---|---|"
    cases = {"demo, 600 examples": captured(0)}
    for layers, n, width in ((16, 500, 1024), (32, 500, 2048)):
        name = f"{layers} layers, {n} examples, width {width}"
        cases[name] = made_up(layers, n, width, 1), made_up(layers, n, width, 2)
    for name, states in tqdm(cases.items(), desc="costs"):
        fit = _processor_seconds(lambda s=states: _fitted(False, s))
        both = _processor_seconds(lambda s=states: _fitted(True, s))
        check = both - fit
        yield f"| {name} | {fit:.2f} s | {check:.2f} s | {check / fit:.0%} |"


def _fitted(health: bool, states: Captures) -> None:
    es.ExpertSteer(progress=False, health=health).fit_states(*states)


def _processor_seconds(call: Callable[[], None], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    where = f"one thread of an AMD EPYC, torch {torch.__version__}, commit {commit}"
    sizes = ", ".join(map(str, FITS))
    head = (
        f"# The health check\n\n`python -m benchmarks.fitting.health_table`, {where}, "
        f"{time.strftime('%Y-%m-%d')}.\n\nFits on the demo pair over {SETS} contrast sets, of "
        f"{sizes} examples. A fit of spoilt states or labels should not pass in silence.\n"
    )
    parts = [head, *verdicts(), "\nProcessor time without the captures, medians of five.\n"]
    RESULT.write_text("\n".join([*parts, *costs()]) + "\n", "utf-8")
    print(RESULT.read_text("utf-8"))


if __name__ == "__main__":
    main()
