"""What the pairs that each rule chooses do, at one price: results/pairing_rules_cpu.md.

``python -m benchmarks.pairing.rules_on_demo``: fits on the demo pair over four contrast sets of two
sizes, calibrated to one budget; accuracy on the demo's test questions, which no rule has seen.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

import expertsteer as es
from benchmarks import common
from expertsteer import demo
from expertsteer.demo import world
from expertsteer.demo.files import question_rows
from expertsteer.pipeline.effects import AtHand
from expertsteer.tasks import MultipleChoice

BUDGET = 0.1
SEEDS = range(4)
SIZES = (80, 400)
RULES = {
    "effect": {"rule": "effect"},
    "effect, from states alone": {"rule": "effect"},
    "lowest": {"rule": "lowest"},
    "highest": {"rule": "highest"},
    "random": {"rule": "random"},
}
PAIRS = {"1": 1, "4": 4, "by default": None}


def accuracy(on, vectors: es.SteeringVectors, neutral: list[str]) -> float:
    """Share of the test questions answered as the expert does, at the budget."""
    found = es.calibrate(on.model, vectors, neutral, on.tokenizer, budget=BUDGET)
    with es.attach(on.model, vectors, strength=found.strength):
        return float(on.score("test")[:, 0].mean())


def rows() -> Iterator[list[str]]:
    """A row per rule and number of pairs: the mean over the seeds, the least and the most."""
    expert, (model, tokenizer) = demo.load("expert"), demo.load("target")
    on = MultipleChoice.from_rows(question_rows()).on(model, tokenizer, progress=False)
    texts = world.plain_texts(40, seed=3)
    sets = {(n, seed): demo.contrast_set(n, seed) for n in SIZES for seed in SEEDS}
    captured = {
        key: [es.capture(*side, one, progress=False) for side in (expert, (model, tokenizer))]
        for key, one in tqdm(sets.items(), desc="captures")
    }
    cells = [(name, pairs) for name in RULES for pairs in PAIRS]
    for name, pairs in tqdm(cells, desc="rules"):
        shown = [name, pairs]
        for n in SIZES:
            found = []
            for seed in SEEDS:
                fitter = es.ExpertSteer(
                    pairs=PAIRS[pairs], seed=seed, health=False, progress=False, **RULES[name]
                )
                at_hand = AtHand(model, tokenizer, sets[n, seed], texts[1::2], BUDGET)
                at_hand = at_hand if name == "effect" else None
                vectors = fitter.fit_states(*captured[n, seed], at_hand=at_hand)
                found.append(accuracy(on, vectors, texts[::2]))
            mean = sum(found) / len(found)
            shown.append(f"{mean:.2f} ({min(found):.2f} to {max(found):.2f})")
        yield shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    result = parser.parse_args().out / "pairing_rules_cpu.md"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    header = ["rule", "pairs", *(f"{n} examples" for n in SIZES)]
    result.write_text(
        f"""\
# What the pairs of a rule do

`python -m benchmarks.pairing.rules_on_demo`, {common.told(common.provenance())}.

Share of the demo's test questions that the target answers as the expert does, with the vectors \
of the chosen pairs at {BUDGET} nats per token of neutral text; mean over {len(SEEDS)} contrast \
sets, least and most.

{common.table(header, rows())}
""",
        "utf-8",
    )
    print(result.read_text("utf-8"))


if __name__ == "__main__":
    main()
