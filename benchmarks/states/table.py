"""The table of capture and of many concepts: one command, every figure with its check.

    python -m benchmarks.states.table [--only PART ...] [--out FOLDER]

writes ``results/capture_cpu.json`` and ``capture_cpu.md``. A gate that stays shut ends the run
before a speed is printed.
"""

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks import common, timing
from benchmarks.states import alone
from benchmarks.states.gates import CAPTURE, CONCEPTS, LOOP, RANKS

TEXTS, RANKED = 96, 512
RUNS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}


def speed():
    with CAPTURE.checked(count=TEXTS) as case:
        rates = {
            name: TEXTS / timing.middle(taken)["median"]
            for name, taken in timing.interleave(case.works).items()
        }
        worst = max(case.errors.values())
    return {"examples per second": rates, "largest relative difference": worst}


def memory():
    return {"passes": 0.0} | extra_memory(["plain", "headless", "ours"])


def extra_memory(kinds):
    """MiB beyond the bare passes, once the states agree."""
    with CAPTURE.checked(**alone.LONG):
        passes = alone.peak("passes")
        return {kind: round(max(alone.peak(kind) - passes, 0), 2) for kind in kinds}


def ranks():
    with RANKS.checked(count=RANKED, runs=RUNS) as case:
        return case.figures


def concepts(**size):
    with CONCEPTS.checked(**size) as case:
        total = case.first["fit_concepts"]
        passes = case.works["passes"]()  # the passes themselves, without what lies between
        figures = {"total s": total, "passes s": passes, "over": total / passes - 1}
        return case.figures | figures


PARTS = {
    "speed": speed,
    "memory": memory,
    "ranks": ranks,
    "demo pair": lambda: concepts(pair="demo", concepts=200, examples=200, part=1024),
    "larger pair": lambda: concepts(pair="larger", concepts=200, examples=100),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = common.provenance() | {"command": common.command()}
    for name in given.only:
        found[name], taken = timing.once(PARTS[name])
        print(name, found[name], f"[{taken:.0f} s]", flush=True)
    common.write_json(given.out / "capture_cpu.json", found)
    (given.out / "capture_cpu.md").write_text(markdown(found))


def markdown(found):
    """Four tables, each with what was run in its head; what was not measured is left out."""
    told = [f"{n}: {found[n]}  " for n in ("machine", "torch", "commit", "date", "command")]
    sections = {
        "speed": speed_table,
        "memory": memory_table,
        "ranks": ranks_table,
        "demo pair": concepts_table,
    }
    measured = [table(found) for name, table in sections.items() if name in found]
    return "\n".join([*told, *(f"\n{title}\n\n{table}\n" for title, table in measured)])


def speed_table(found):
    rates = found["speed"]["examples per second"]
    error = found["speed"]["largest relative difference"]
    title = (
        f"{TEXTS} texts of 16 to 128 tokens, 6 layers x 256, one thread; states agree to a "
        f"relative {error:.1g}"
    )
    rows = ([name, f"{r:.1f}", f"{r / rates[LOOP]:.2f}x"] for name, r in rates.items())
    return title, common.table(["", "examples/s", "of the plain loop"], rows)


def memory_table(found):
    names = {"plain": "plain loop", "headless": "plain loop, no head", "ours": "`capture_to`"}
    rows = ([name, f"{found['memory'][kind]:.2f}"] for kind, name in names.items())
    title = "Peak memory over 32 texts of 128 tokens, 6 layers x 256"
    return title, common.table(["", "MiB beyond the bare passes"], rows)


def ranks_table(found):
    title = f"{RANKED} texts on two cores, by processes that torchrun starts (start-up apart)"
    rows = ([name, f"{rate:.1f}"] for name, rate in found["ranks"].items())
    return title, common.table(["", "examples/s"], rows)


def concepts_table(found):
    pairs = {"demo pair": "demo pair", "larger pair": "4 layers x 256, texts of 64 tokens"}
    rows = (
        [what, f["concepts"], f["texts"], f"{f['total s']:.1f} s", f"{f['passes s']:.1f} s",
         f"{f['over']:.0%}"]
        for what, f in ((what, found[name]) for name, what in pairs.items() if name in found)
    )  # fmt: skip
    heads = ["pair", "concepts", "texts", "total", "forward passes alone", "over"]
    return "Many concepts, all texts different; one thread", common.table(heads, rows)


if __name__ == "__main__":
    main()
