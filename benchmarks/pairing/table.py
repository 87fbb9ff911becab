"""The tables of mutual information: one command, every figure with its check and its peer.

    python -m benchmarks.pairing.table [--layers 32 --examples 1000 --width 4096 --rounds 5]

writes ``results/mi_cpu.md``, ``mi_cpu.json`` and, where matplotlib is, ``mi_growth.png``. A check
that fails ends the run before a speed is printed.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import torch

from benchmarks.pairing import cases
from expertsteer import ops
from expertsteer.ops import products
from expertsteer.pairing import gaussian as _gaussian


def seconds(work, rounds):
    """Median over ``rounds`` calls after one to warm up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def require(right, what):
    if not right:
        sys.exit(f"{what}; no speed is reported")


def gaussian_rows(x, y, rounds):
    layers, n, d = x.shape
    ours, peers = ([project(side) for side in (x, y)] for project in PROJECTIONS)
    exact = cases.pairs_slogdet(*ours)
    error = float((cases.pairs(*ours) - exact).abs().max())
    require(error < 1e-3, f"pair stages differ by {error:.2g} nats")
    peer_nats = cases.pairs_slogdet(*peers)
    lost = float(((peer_nats - exact) / peer_nats).max())
    require(lost < 0.03, f"the projection loses {lost:.1%} of a pair's information")
    projection = seconds(lambda: [cases.project(side) for side in (x, y)], rounds)
    pair = seconds(lambda: cases.pairs(*ours), rounds)
    loop = seconds(lambda: cases.pairs_slogdet(*ours), rounds)
    pca = seconds(lambda: [cases.project_sklearn(side) for side in (x, y)], rounds)
    a, b = x[0], torch.randn(n, d)
    rates = {
        "torch's": 2 * n * n * d / seconds(lambda: a @ b.mT, rounds),
        "oneDNN's": 2 * n * n * d / seconds(lambda: products.times_rows(a, b), rounds),
    }
    reached = cases.projection_operations(2 * layers, n, d) / projection
    bias = _gaussian.gaussian_bias(n // 2, cases.COMPONENTS, cases.COMPONENTS)
    return [
        row("pair stage", "slogdet per pair", pair, loop, f"largest difference {error:.1e} nats"),
        row("projection", "scikit-learn randomised PCA", projection, pca, f"loses {lost:.2%}"),
        row(
            "whole",
            "PCA + slogdet per pair",
            projection + pair,
            pca + loop,
            f"mean {float(exact.mean()) - bias:.2f} nats, {float(peer_nats.mean()) - bias:.2f}",
        ),
    ] + [
        {
            "what": f"projection, share of {whose} plain product ({rate / 1e9:.0f} GFLOP/s)",
            "share": reached / rate,
        }
        for whose, rate in rates.items()
    ]


PROJECTIONS = cases.project, cases.project_sklearn


def row(what, peer, ours_s, peer_s, accuracy):
    return {
        "what": what,
        "peer": peer,
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "accuracy": accuracy,
    }


def ksg_rows(x, y, rounds, sample=16):
    layers, n, _ = x.shape
    rows = []
    for r in (4, 8):
        codes = [cases.ksg_codes(side, r) for side in (x, y)]
        found = ops.ksg_information(*codes)
        chosen = [(i % layers, (3 * i) % layers) for i in range(sample)]

        def trees(codes=codes, chosen=chosen):
            return [cases.ksg_tree(codes[0][a], codes[1][b]) for a, b in chosen]

        error = max(abs(float(found[p]) - value) for p, value in zip(chosen, trees()))
        require(error < 1e-6, f"ksg differs from the k-d tree by {error:.2g} nats")
        known = ops.ksg_information(*cases.planted_codes(n, r, 1.0, 8)).diagonal().mean()
        accuracy = f"equal to {max(error, 1e-16):.0e}; {float(known):.2f} where 1 nat is true"
        ours_s = seconds(lambda codes=codes: ops.ksg_information(*codes), rounds)
        peer_s = seconds(trees, rounds) * layers**2 / sample
        rows.append(
            row(f"ksg, r {r}", f"k-d tree, {sample} pairs scaled", ours_s, peer_s, accuracy)
        )
    codes = [cases.ksg_codes(side, 1) for side in (x, y)]
    gap = float((ops.ksg_information(*codes) - cases.ksg_sklearn(*codes)).abs().max())
    require(gap < 0.2, f"ksg at r 1 differs from scikit-learn by {gap:.2g} nats")
    ours_s = seconds(lambda: ops.ksg_information(*codes), rounds)
    peer_s = seconds(lambda: cases.ksg_sklearn(*codes), rounds)
    rows.append(row("ksg, r 1", "scikit-learn (adds noise)", ours_s, peer_s, f"within {gap:.2f}"))
    return rows


def growth(rounds, layers, n):
    """Seconds of both estimators as L, n and r double, the others held."""
    curves = {"L": (layers // 4, layers // 2, layers), "n": (n // 4, n // 2, n), "r": (2, 4, 8)}
    measured = []
    for name, values in curves.items():
        for value in values:
            size = {"L": layers // 2, "n": n // 2, "r": 4} | {name: value}
            x, y = cases.planted_codes(size["n"], size["r"], 1.0, size["L"])
            for estimator, work in {
                "ksg": lambda x=x, y=y: ops.ksg_information(x, y),
                "gaussian": lambda x=x, y=y: ops.gaussian_information(x, y),
            }.items():
                point = {"axis": name, "value": value, "estimator": estimator}
                measured.append(point | {"seconds": seconds(work, rounds)})
    return measured


def plot(path, points):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3, sharey=True), ("L", "n", "r")):
        for estimator, colour in (("gaussian", "#2f6db3"), ("ksg", "#c4502b")):
            line = [p for p in points if p["axis"] == name and p["estimator"] == estimator]
            xs, ys = ([p[key] for p in line] for key in ("value", "seconds"))
            axes.loglog(xs, ys, marker="o", color=colour, label=estimator)
        axes.set_xticks(xs, xs)
        axes.minorticks_off()
        axes.set_xlabel({"L": "layers per model", "n": "examples", "r": "components"}[name])
    axes.legend(frameon=False)
    figure.supylabel("seconds, all pairs")
    figure.savefig(path, dpi=160)


def provenance():
    def git(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": f"{names[0].split(':')[1].strip() if names else platform.processor()}, "
        f"{torch.get_num_threads()} threads",
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s") else ""),
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
    }


def markdown(document):
    lines = [f"{name}: {value}  " for name, value in document["provenance"].items()]
    lines += [
        "",
        "| what | ours | peer | its time | ratio | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for r in document["rows"]:
        if "share" in r:
            lines.append(f"| {r['what']} | {r['share']:.0%} | | | | |")
            continue
        cells = f"{r['ours_s']:.3g} s", r["peer"], f"{r['peer_s']:.3g} s", f"{r['ratio']:.1f}x"
        lines.append(f"| {r['what']} | {' | '.join(cells)} | {r['accuracy']} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 32), ("examples", 1000), ("width", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args()
    x, y = cases.states(given.layers, given.examples, given.width)
    document = {
        "provenance": provenance(),
        "size": {"layers": given.layers, "examples": given.examples, "width": given.width},
        "rows": gaussian_rows(x, y, given.rounds) + ksg_rows(x, y, given.rounds),
        "growth": growth(given.rounds, given.layers, given.examples),
    }
    given.out.mkdir(exist_ok=True, parents=True)
    (given.out / "mi_cpu.json").write_text(json.dumps(document, indent=2) + "\n")
    text = markdown(document)
    (given.out / "mi_cpu.md").write_text(text)
    try:
        plot(given.out / "mi_growth.png", document["growth"])
    except ImportError:
        print("matplotlib is not installed: no mi_growth.png")
    print(text)


if __name__ == "__main__":
    main()
