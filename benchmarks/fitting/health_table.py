"""How often the health check is right, and what it costs: results/health_cpu.md.

``python -m benchmarks.fitting.health_table``: fits on the demo pair over four contrast sets,
sound ones and ones that were spoilt on purpose, and the check's share of a fit's processor time.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

import expertsteer as es
from benchmarks import common, timing
from benchmarks.fitting.gates import EXAMPLES, HEALTH, Captures, captured

SETS = 4
FITS = {600: 4, 300: 8, 160: 8, 80: 8}  # examples -> fits

Spoil = Callable[[es.HiddenStates, es.HiddenStates, torch.Tensor], Captures]


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


def verdicts() -> Iterator[list[str]]:
    """A row per case: how many fits passed in silence, and which checks spoke."""
    sets = [captured(seed) for seed in tqdm(range(SETS), desc="captures")]
    for name, (spoil, options) in CASES.items():
        silent, total, named = 0, 0, Counter()
        for n, fits in FITS.items():
            for i in range(fits):
                states = [some_pairs(side, n, i) for side in sets[i % SETS]]
                pipeline = es.ExpertSteer(progress=False, rule="lowest", seed=i, **options)
                pipeline.fit_states(*spoil(*states, i))
                total, silent = total + 1, silent + pipeline.health_.ok
                named.update({finding.check for finding in pipeline.health_.findings})
        checks = ", ".join(f"{check} {count}" for check, count in named.most_common())
        yield [name, f"{silent} of {total}", checks or "-"]


def costs() -> Iterator[list[str]]:
    """A row per size: processor seconds of a fit from captures, and of the check."""
    sizes = {"demo, 600 examples": {}}
    for layers, n, width in ((16, 500, 1024), (32, 500, 2048)):
        name = f"{layers} layers, {n} examples, width {width}"
        sizes[name] = {"layers": layers, "n": n, "width": width}
    for name, size in tqdm(sizes.items(), desc="costs"):
        with HEALTH.checked(**size) as case:
            fit, both = (
                timing.seconds(work, clock=timing.PROCESSOR) for work in case.works.values()
            )
        check = both - fit
        yield [name, f"{fit:.2f} s", f"{check:.2f} s", f"{check / fit:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    result = parser.parse_args().out / "health_cpu.md"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sizes = ", ".join(map(str, FITS))
    result.write_text(
        f"""\
# The health check

`python -m benchmarks.fitting.health_table`, {common.told(common.provenance())}.

Fits on the demo pair over {SETS} contrast sets, of {sizes} examples. A fit of spoilt states or \
labels should not pass in silence.

{common.table(["fits", "silent", "what the check named"], verdicts())}

Processor time without the captures, medians of five.

{common.table(["captures", "fit", "check", "share"], costs())}
""",
        "utf-8",
    )
    print(result.read_text("utf-8"))


if __name__ == "__main__":
    main()
