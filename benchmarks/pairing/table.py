"""The tables of mutual information: one command, every figure with its check and its peer.

    python -m benchmarks.pairing.table [--layers 32 --examples 1000 --width 4096 --rounds 5]

writes ``results/mi_cpu.md``, ``mi_cpu.json`` and, where matplotlib is, ``mi_growth.png``. A gate
that stays shut ends the run before a speed is printed.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.pairing import cases
from benchmarks.pairing.gates import (
    GAUSSIAN_PAIRS,
    GROWTH,
    KSG,
    KSG_ONE_COMPONENT,
    OURS,
    PROJECTION,
)
from benchmarks.timing import seconds
from expertsteer import ops
from expertsteer.ops import products
from expertsteer.pairing import gaussian as _gaussian


def row(what, peer, ours_s, peer_s, accuracy):
    return {
        "what": what,
        "peer": peer,
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "accuracy": accuracy,
    }


def gaussian_rows(size, rounds):
    layers, n, d = size.values()
    with GAUSSIAN_PAIRS.checked(**size) as stage, PROJECTION.checked(**size) as coded:
        pair, loop, projection, pca = (
            seconds(case.works[name], rounds)
            for case, name in ((stage, OURS), (stage, "loop"), (coded, OURS), (coded, "PCA"))
        )
    error, lost = stage.errors[OURS], coded.errors[OURS]
    bias = _gaussian.gaussian_bias(n // 2, cases.COMPONENTS, cases.COMPONENTS)
    means = [f"{coded.figures[f'mean nats, {name}'] - bias:.2f}" for name in (OURS, "PCA")]
    whole = projection + pair, pca + loop, f"mean {means[0]} nats, {means[1]}"
    return [
        row("pair stage", "slogdet per pair", pair, loop, f"largest difference {error:.1e} nats"),
        row("projection", "scikit-learn randomised PCA", projection, pca, f"loses {lost:.2%}"),
        row("whole", "PCA + slogdet per pair", *whole),
        *share_rows(cases.projection_operations(2 * layers, n, d) / projection, n, d, rounds),
    ]


def share_rows(reached, n, d, rounds):
    """Of the rate of a plain product."""
    a, b = torch.randn(n, d), torch.randn(n, d)
    products_of = {"torch's": lambda: a @ b.mT, "oneDNN's": lambda: products.times_rows(a, b)}
    rates = {whose: 2 * n * n * d / seconds(work, rounds) for whose, work in products_of.items()}
    return [
        {
            "what": f"projection, share of {whose} plain product ({rate / 1e9:.0f} GFLOP/s)",
            "share": reached / rate,
        }
        for whose, rate in rates.items()
    ]


def ksg_rows(size, rounds, sample=16):
    rows = []
    for r in (4, 8):
        with KSG.checked(**size, r=r, sample=sample) as case:
            ours_s = seconds(case.works[OURS], rounds)
            peer_s = seconds(case.works["k-d tree"], rounds) * size["layers"] ** 2 / sample
        known = ops.ksg_information(*cases.planted_codes(size["n"], r, 1.0, 8)).diagonal().mean()
        error = max(case.errors[OURS], 1e-16)
        accuracy = f"equal to {error:.0e}; {float(known):.2f} where 1 nat is true"
        peer = f"k-d tree, {sample} pairs scaled"
        rows.append(row(f"ksg, r {r}", peer, ours_s, peer_s, accuracy))
    with KSG_ONE_COMPONENT.checked(**size) as case:
        ours_s, peer_s = (seconds(work, rounds) for work in case.works.values())
    within = f"within {case.errors[OURS]:.2f}"
    return [*rows, row("ksg, r 1", "scikit-learn (adds noise)", ours_s, peer_s, within)]


def growth(rounds, layers, n):
    """Seconds of both estimators as L, n and r double, the others held."""
    curves = {"L": (layers // 4, layers // 2, layers), "n": (n // 4, n // 2, n), "r": (2, 4, 8)}
    measured = []
    for name, values in curves.items():
        for value in values:
            size = {"L": layers // 2, "n": n // 2, "r": 4} | {name: value}
            with GROWTH.checked(layers=size["L"], n=size["n"], r=size["r"]) as case:
                for estimator, work in case.works.items():
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


def markdown(document):
    heads = ["what", "ours", "peer", "its time", "ratio", "accuracy"]
    lines = [f"{name}: {value}  " for name, value in document["provenance"].items()]
    table = common.table(heads, map(cells, document["rows"]))
    return "\n".join([*lines, "", table]) + "\n"


def cells(r):
    if "share" in r:
        return r["what"], f"{r['share']:.0%}", *[""] * 4
    ours, peer = f"{r['ours_s']:.3g} s", f"{r['peer_s']:.3g} s"
    return r["what"], ours, r["peer"], peer, f"{r['ratio']:.1f}x", r["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 32), ("examples", 1000), ("width", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    given = parser.parse_args()
    size = {"layers": given.layers, "n": given.examples, "d": given.width}
    document = {
        "provenance": common.provenance() | {"command": common.command()},
        "size": {"layers": given.layers, "examples": given.examples, "width": given.width},
        "rows": gaussian_rows(size, given.rounds) + ksg_rows(size, given.rounds),
        "growth": growth(given.rounds, given.layers, given.examples),
    }
    common.write_json(given.out / "mi_cpu.json", document)
    text = markdown(document)
    (given.out / "mi_cpu.md").write_text(text)
    try:
        plot(given.out / "mi_growth.png", document["growth"])
    except ImportError:
        print("matplotlib is not installed: no mi_growth.png")
    print(text)


if __name__ == "__main__":
    main()
