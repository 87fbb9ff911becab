"""The table of capture and of many concepts: one command, every figure with its check.

    python -m benchmarks.states.table

writes ``results/capture_cpu.json`` and ``capture_cpu.md``. A check that fails ends the run before
a speed is printed.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path
from statistics import median

import torch

import expertsteer as es
from benchmarks.states import cases
from expertsteer import demo

RESULTS = Path(__file__).parents[1] / "results"
TEXTS, ROUNDS = 96, 5


def require(right, what):
    if not right:
        sys.exit(f"{what}; no figure is reported")


def seconds(works):
    """Median of each over interleaved rounds, after one to warm up."""
    taken = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                work(folder + "/out")
                taken[name].append(time.perf_counter() - start)
    return {name: median(times[1:]) for name, times in taken.items()}


def speed():
    network, words, texts = cases.model(), cases.tokenizer(), cases.contrast(TEXTS)
    works = {
        "capture_to": lambda folder: cases.ours(network, words, texts, folder).read().states,
        "capture": lambda _: es.capture(network, words, texts, progress=False).states,
        "plain loop": lambda _: cases.plain(network, words, texts),
        "plain loop, sorted, no head": lambda _: cases.plain(network, words, texts, True, False),
    }
    expected = works["plain loop"](None)
    worst = 0.0
    for name, work in works.items():
        with tempfile.TemporaryDirectory() as folder:
            worst = max(worst, cases.agree(work(folder + "/out"), expected))
        require(worst < 1e-4, f"{name}: states differ by {worst:.1g}")
    rates = {name: TEXTS / taken for name, taken in seconds(works).items()}
    return {"examples per second": rates, "largest relative difference": worst}


def memory():
    peaks = {kind: cases.peak(kind) for kind in ("passes", "plain", "headless", "ours")}
    return {kind: round(peak - peaks["passes"], 2) for kind, peak in peaks.items()}


def ranks():
    runs = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
    found = {name: cases.by_ranks(*run) for name, run in runs.items()}
    first = next(iter(found.values()))[1]
    for name, (_, states) in found.items():
        require((states - first).abs().max() < 1e-3, f"{name}: other states")
    return {name: 512 / taken for name, (taken, _) in found.items()}


def concepts(sets, expert, target, part):
    with tempfile.TemporaryDirectory() as folder:  # what is imported and made once
        cases.many(dict(list(sets.items())[:2]), expert, target, folder)
    with tempfile.TemporaryDirectory() as folder:
        total, index = cases.many(sets, expert, target, folder)
        wrong = cases.unlike_alone(sets, expert, target, folder, 3)
    require(wrong is None, wrong)
    require(not index["failed"] and len(index["concepts"]) == len(sets), "concepts are missing")
    texts = es.ContrastSet(tuple(e for contrast in sets.values() for e in contrast))
    require(len({e.text for e in texts}) == index["texts"] == len(texts), "texts are shared")
    passes = sum(cases.forward_passes(*pair, texts, part) for pair in (expert, target))
    return {"concepts": len(sets), "texts": len(texts), "total s": total, "passes s": passes,
            "over": total / passes - 1}  # fmt: skip


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = [
        (cases.model(4, width, seed), cases.tokenizer()) for width, seed in ((256, 1), (256, 2))
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    parts = {
        "speed": speed,
        "memory": memory,
        "ranks": ranks,
        "demo pair": lambda: concepts(
            cases.demo_concepts(200, 200), demo.load("expert"), demo.load("target"), 1024
        ),
        "larger pair": lambda: concepts(cases.made_concepts(200, 100, 64), *made, 64),
    }
    found = {
        "machine": f"{processor()}, 2 cores",
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "date": str(date.today()),
        "command": "python -m benchmarks.states.table",
    }
    for name, work in parts.items():
        start = time.perf_counter()
        found[name] = work()
        print(name, found[name], f"[{time.perf_counter() - start:.0f} s]", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "capture_cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "capture_cpu.md").write_text(markdown(found))


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def markdown(found):
    """Four tables, each with what was run in its head."""
    told = ("machine", "torch", "commit", "date", "command")
    rates, extra = found["speed"]["examples per second"], found["memory"]
    error = found["speed"]["largest relative difference"]
    names = {"plain": "plain loop", "headless": "plain loop, no head", "ours": "`capture_to`"}
    pairs = {"demo pair": "demo pair", "larger pair": "4 layers x 256, texts of 64 tokens"}
    many = (
        [what, f["concepts"], f["texts"], f"{f['total s']:.1f} s", f"{f['passes s']:.1f} s",
         f"{f['over']:.0%}"]
        for what, f in ((what, found[name]) for name, what in pairs.items())
    )  # fmt: skip
    tables = [
        table(
            f"{TEXTS} texts of 16 to 128 tokens, 6 layers x 256, one thread; states agree to a "
            f"relative {error:.1g}",
            ["", "examples/s", "of the plain loop"],
            ([n, f"{r:.1f}", f"{r / rates['plain loop']:.2f}x"] for n, r in rates.items()),
        ),
        table(
            "Peak memory over 32 texts of 128 tokens, 6 layers x 256",
            ["", "MiB beyond the bare passes"],
            ([name, f"{extra[kind]:.2f}"] for kind, name in names.items()),
        ),
        table(
            "512 texts on two cores, by processes that torchrun starts (start-up apart)",
            ["", "examples/s"],
            ([name, f"{rate:.1f}"] for name, rate in found["ranks"].items()),
        ),
        table(
            "Many concepts, all texts different; one thread",
            ["pair", "concepts", "texts", "total", "forward passes alone", "over"],
            many,
        ),
    ]
    return "\n".join([f"{name}: {found[name]}  " for name in told] + tables)


def table(title, heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(["", title, "", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""])


if __name__ == "__main__":
    main()
