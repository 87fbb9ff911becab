"""The tables of the RFM: one command, every figure with its check and its peer.

    python -m benchmarks.rfm.table [--only fits grid concepts streamed growth wide]

writes ``results/rfm_cpu.json`` after every cell, so that a run can be stopped and taken up again,
and ``rfm_cpu.md`` and ``rfm_growth.png`` at the end. A check that fails leaves its cell without a
speed. Peers that take longer than ten seconds are timed once, the others five times; the table says
which.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

import expertsteer as es
from benchmarks.rfm import cases

RESULTS = Path(__file__).parents[1] / "results"
SLOW = 10.0  # seconds beyond which a peer is timed once
GRID = {"bandwidth": (1.0, 10.0, 100.0), "center_grads": (False, True)}


def main() -> None:
    parts = {"fits": fits, "grid": grid, "concepts": concepts, "streamed": streamed}
    parts |= {"growth": growth, "wide": wide}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*parts], default=[*parts])
    chosen = parser.parse_args().only
    RESULTS.mkdir(exist_ok=True)
    store = Store(RESULTS / "rfm_cpu.json")
    for name in chosen:
        parts[name](store)
    (RESULTS / "rfm_cpu.md").write_text(markdown(store.cells))
    plot_growth(store.cells, RESULTS / "rfm_growth.png")


class Store:
    """Cells by name, written as they come."""

    def __init__(self, path: Path):
        self.path = path
        self.cells = json.loads(path.read_text()) if path.exists() else {}

    def cell(self, name: str, work) -> None:
        if name in self.cells:
            return
        start = time.perf_counter()
        try:
            figures = work()
        except RuntimeError as failed:
            figures = {"refused": str(failed)}
        self.cells[name] = figures | {"date": str(date.today()), "commit": commit()}
        self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
        print(f"{name}: {figures} [{time.perf_counter() - start:.0f} s]", flush=True)


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def fits(store: Store) -> None:
    """One problem, direction included."""
    sizes = (250, 500, 1000, 2000)
    several(store, [(cases.MEDIAN, d, n, c) for d in (2048, 4096) for n in sizes for c in (1, 4)])
    several(store, [(cases.CONSTANT, d, n, 1) for d in (2048, 4096) for n in (500, 1000)])


def wide(store: Store) -> None:
    """As `fits`, where a peer's d x d matrices take minutes."""
    several(store, [(cases.MEDIAN, 8192, n, c) for c in (1, 4) for n in (250, 500, 1000, 2000)])


def several(store: Store, cells: list) -> None:
    for mode, d, n, outputs in cells:
        peers = {"xrfm l2_high_dim": cases.xrfm, "plain torch": cases.Plain}
        if (n, outputs) == (1000, 1) and d <= 4096:
            peers["xrfm l2"] = lambda X, y, mode: cases.xrfm(X, y, mode, "l2")
        name = f"{mode['bandwidth_mode']} n={n} d={d} outputs={outputs}"
        store.cell(name, lambda a=(n, d, outputs), m=mode, p=peers: one_fit(*a, m, p))


def one_fit(n: int, d: int, outputs: int, mode: dict, peers: dict) -> dict:
    X, y = cases.problem(n, d, outputs)
    if mode is cases.CONSTANT:
        X = cases.at_distance(X)
    figures = {"n": n, "d": d, "outputs": outputs, "mode": mode["bandwidth_mode"], "peers": {}}
    for name, peer in peers.items():
        start = time.perf_counter()
        machine = peer(X, y, mode)
        first = time.perf_counter() - start
        try:
            accuracy = cases.gate(X, y, machine, mode)
        except RuntimeError as failed:
            figures["peers"][name] = {"refused": str(failed)}
            continue
        rounds = 1 if first > SLOW else 5
        taken = first if rounds == 1 else cases.seconds(lambda p=peer: p(X, y, mode), 5, 0)
        figures["peers"][name] = accuracy | {"seconds": taken, "rounds": rounds}
    figures["seconds"] = cases.seconds(lambda: cases.ours(X, y, mode), 9, 2)
    a, b = torch.randn(n, n), torch.randn(n, n)
    product = 2 * n**3 / cases.seconds(lambda: torch.mm(a, b), 9, 2)
    if outputs == 1 and mode is cases.MEDIAN:
        figures["rate"] = cases.operations(n, d) / figures["seconds"]
        figures["product_rate"] = product
    return figures


def grid(store: Store) -> None:
    """The six points of neural_controllers on 32 layers; the peer on one layer, times 32."""

    def work() -> dict:
        layers, n, d = 32, 512, 4096
        data = [cases.problem(n + 100, d, seed=s) for s in range(layers)]
        X, y = (torch.stack(t) for t in zip(*data))
        X = cases.at_distance(X)
        split = X[:, :n], y[:, :n], X[:, n:], y[:, n:]
        machine = es.RFM(bandwidth_mode="constant", normalize="max", reg=cases.REG, iters=5)
        own = cases.seconds(lambda: machine.fit_grid(*split, **GRID), 3, 1)
        start = time.perf_counter()
        for bandwidth in GRID["bandwidth"]:
            for _ in GRID["center_grads"]:
                cases.xrfm(X[0, :n], y[0, :n], cases.CONSTANT | {"bandwidth": bandwidth})
        peer = time.perf_counter() - start
        first = X[0, :n], y[0, :n]
        accuracy = cases.gate(*first, cases.xrfm(*first, cases.CONSTANT), cases.CONSTANT)
        return accuracy | {"seconds": own, "peer_seconds_per_layer": peer, "layers": layers}

    store.cell("grid of six, 32 layers, n=512 d=4096", work)


def concepts(store: Store) -> None:
    """512 concepts x 8 layers, measured on 64 concepts at a time."""

    def work() -> dict:
        batch, n, d, iters = 64 * 8, 256, 4096, 3
        X, y = cases.problem(n, d)
        X = X.expand(batch, n, d).clone()
        X += 0.1 * torch.randn(batch, n, 1)
        machine = es.RFM(iters=iters)
        taken = cases.seconds(lambda: machine.fit(X, y[:, 0]), 1, 0) * 8
        a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
        rate = 2 * 4096**3 / cases.seconds(lambda: torch.mm(a, b), 3, 1)
        tokens = 512 * n * 32  # examples of 32 tokens
        forward = 2 * 8e9 * tokens / rate
        return {"seconds": taken, "forward_seconds": forward, "share": taken / forward}

    store.cell("512 concepts x 8 layers, n=256 d=4096", work)


STREAM = """
import json, re, sys, time, torch
sys.path.insert(0, sys.argv[2])
from benchmarks.rfm import cases
n, d, iters, budget, regime, double = json.loads(sys.argv[1])
X, y = cases.problem(n, d)
new, _ = cases.problem(200, d, seed=1)
if double:
    X, y, new = X.double(), y.double(), new.double()
cases.ours(X[:300], y[:300], iters=1)
def peak():  # of this process: getrusage would start from its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before, start = peak(), time.perf_counter()
m = cases.ours(X, y, iters=iters, memory_budget=budget, regime=regime)
taken = time.perf_counter() - start
used = peak() - before
fits = m._fitted.parts[0].kept[0].fits
print(json.dumps({"seconds": taken, "peak": used, "budget": m.plan_.memory_budget,
    "ridge_raised": bool((m.ridge_ > 1.01 * cases.REG).any()),
    "regime": m.plan_.regime, "iterations": getattr(fits, "iterations", []),
    "predictions": m.predict(new).flatten().tolist(), "direction": m.direction_.tolist()}))
"""


def run_alone(n, d, iters, budget, regime="streamed", double=False) -> dict:
    """A fit in its own process, whose peak memory is its own."""
    arguments = json.dumps([n, d, iters, budget, regime, double])
    command = [sys.executable, "-c", STREAM, arguments, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout)


def streamed(store: Store) -> None:
    """n = 20,000 under two budgets, against double precision in the feature regime."""
    n, d, iters = 20_000, 2048, 2
    exact: dict = {}

    def work(budget: int) -> dict:
        if not exact:
            exact.update(run_alone(n, d, iters, 20 << 30, "feature", True))
        got = run_alone(n, d, iters, budget)
        truth = torch.tensor(exact["predictions"])
        got["error"] = float((torch.tensor(got.pop("predictions")) - truth).abs().max())
        got["cosine"] = float(torch.tensor(got.pop("direction")) @ torch.tensor(exact["direction"]))
        return got

    for gigabytes in (3, 1):
        name = f"streamed n={n} d={d} iters={iters} budget={gigabytes} GiB"
        store.cell(name, lambda g=gigabytes: work(g << 30))


def growth(store: Store) -> None:
    for n in (5000, 10_000, 20_000, 40_000):

        def work(n=n) -> dict:
            got = run_alone(n, 2048, 1, 8 << 30)
            return {key: got[key] for key in ("seconds", "peak", "iterations", "ridge_raised")}

        store.cell(f"growth n={n} d=2048 iters=1", work)


def markdown(cells: dict) -> str:
    lines = [
        "# RFM on a CPU",
        "",
        f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"xRFM {version('xrfm')}. `python -m benchmarks.rfm.table`; every cell's commit and date "
        "are in `rfm_cpu.json`. Ratios are a peer's seconds over ours, in the same run.",
        "",
        "## One problem, five iterations, direction included",
        "",
        "| bandwidth | n | d | outputs | xRFM `l2_high_dim` + `eigh` | plain torch, d space | "
        "xRFM `l2` | error (ours / xRFM) | share of a plain product's rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells.values():
        if "peers" in cell:
            lines.append(fit_line(cell))
    for c in (1, 4):
        for n in (250, 500, 1000, 2000):
            if f"median n={n} d=8192 outputs={c}" not in cells:
                lines.append(f"| median | {n} | 8192 | {c} |" + " not measured |" * 5)
    lines += [
        "",
        "One run of a peer instead of the median of five where marked *. No speed is reported "
        "where our predictions are more than 1e-4 and twice the peer's error away from double "
        "precision.",
        "",
    ]
    others = {name: cell for name, cell in cells.items() if "peers" not in cell}
    lines += ["## The rest", "", "| what | figures |", "|---|---|"]
    for name, cell in others.items():
        lines.append(f"| {name} | {describe(cell)} |")
    return "\n".join(lines) + "\n"


def fit_line(cell: dict) -> str:
    def ratio(name: str) -> str:
        if name not in cell["peers"]:
            return "not measured"
        peer = cell["peers"][name]
        if "refused" in peer:
            return "ours is less accurate"
        return f"{peer['seconds'] / cell['seconds']:.1f}x" + "*" * (peer["rounds"] == 1)

    xrfm = cell["peers"]["xrfm l2_high_dim"]
    errors = f"{xrfm['error']:.0e} / {xrfm['peer_error']:.0e}" if "error" in xrfm else ""
    share = f"{cell['rate'] / cell['product_rate']:.0%}" if "rate" in cell else ""
    return (
        f"| {cell['mode']} | {cell['n']} | {cell['d']} | {cell['outputs']} | "
        f"{ratio('xrfm l2_high_dim')} | {ratio('plain torch')} | {ratio('xrfm l2')} | "
        f"{errors} | {share} |"
    )


def describe(cell: dict) -> str:
    if "refused" in cell:
        return cell["refused"]
    if "peer_seconds_per_layer" in cell:
        ratio = cell["peer_seconds_per_layer"] * cell["layers"] / cell["seconds"]
        return f"{ratio:.0f}x xRFM `l2_high_dim` + `eigh` (one layer measured, times 32)"
    if "share" in cell:
        return (
            f"{cell['share']:.2%} of one forward pass of an 8-billion-parameter model over the "
            "same examples (32 tokens each) at this machine's product rate"
        )
    peak = f"{cell['peak'] / 2**30:.2f} GiB" if cell["peak"] else "not measured"
    text = f"{cell['seconds']:.0f} s here, peak {peak}"
    if "budget" in cell:
        text += f" of {cell['budget'] / 2**30:.0f} GiB allowed, error {cell['error']:.0e}"
        text += f", cosine {cell['cosine']:.6f}"
    if "regime" in cell and cell["regime"] != "streamed":
        return text
    if cell.get("ridge_raised"):
        text += f", ridge raised from {cases.REG:g}, which single precision cannot solve"
    return text + f", solver iterations {cell['iterations']}"


def plot_growth(cells: dict, path: Path) -> None:
    points = sorted(
        (int(name.split()[1][2:]), cell["seconds"])
        for name, cell in cells.items()
        if name.startswith("growth") and "seconds" in cell
    )
    if not points:
        return
    from matplotlib.figure import Figure

    sizes, taken = zip(*points)
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(sizes, taken, marker="o", color="#2f6db3", label="streamed, one AGOP update")
    squares = [taken[0] * (n / sizes[0]) ** 2 for n in sizes]
    axes.loglog(sizes, squares, linestyle=":", color="#888888", label="proportional to n²")
    axes.set_xlabel("points (d = 2048)")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def version(name: str) -> str:
    from importlib.metadata import version as of

    return of(name)


if __name__ == "__main__":
    main()
