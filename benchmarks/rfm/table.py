"""The tables of the RFM: one command, every figure with its check and its peer.

    python -m benchmarks.rfm.table [--only fits grid concepts streamed growth wide]

writes ``results/rfm_cpu.json`` after every cell, so that a run can be stopped and taken up again,
and ``rfm_cpu.md`` and ``rfm_growth.png`` at the end. A gate that stays shut leaves its cell without
a speed. Peers that take longer than ten seconds are timed once, the others five times; the table
says which.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks import common, timing
from benchmarks.registry import Refused
from benchmarks.rfm import cases
from benchmarks.rfm.gates import (
    CONCEPTS,
    DIRECTION,
    GRID,
    OURS,
    PRODUCT,
    STREAMED_ALONE,
    own_seconds,
)
from benchmarks.rfm.report import markdown, plot_growth

SLOW = 10.0  # seconds beyond which a peer is timed once


def main() -> None:
    parts = {"fits": fits, "grid": grid, "concepts": concepts, "streamed": streamed}
    parts |= {"growth": growth, "wide": wide}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*parts], default=[*parts])
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True, parents=True)
    store = Store(given.out / "rfm_cpu.json")
    for name in given.only:
        parts[name](store)
    (given.out / "rfm_cpu.md").write_text(markdown(store.cells))
    plot_growth(store.cells, given.out / "rfm_growth.png")


class Store:
    """Cells by name, written as they come."""

    def __init__(self, path: Path):
        self.path = path
        self.cells = json.loads(path.read_text()) if path.exists() else {}
        self.stamp = {"date": common.today(), "commit": common.commit()}

    def cell(self, name: str, work) -> None:
        if name in self.cells:
            return
        try:
            figures, taken = timing.once(work)
        except RuntimeError as failed:
            figures, taken = {"refused": str(failed)}, float("nan")
        self.cells[name] = figures | self.stamp
        common.write_json(self.path, self.cells)
        print(f"{name}: {figures} [{taken:.0f} s]", flush=True)


def fits(store: Store) -> None:
    """One problem, direction included."""
    sizes = (250, 500, 1000, 2000)
    several(store, [("median", d, n, c) for d in (2048, 4096) for n in sizes for c in (1, 4)])
    several(store, [("constant", d, n, 1) for d in (2048, 4096) for n in (500, 1000)])


def wide(store: Store) -> None:
    """As `fits`, where a peer's d x d matrices take minutes."""
    several(store, [("median", 8192, n, c) for c in (1, 4) for n in (250, 500, 1000, 2000)])


def several(store: Store, cells: list) -> None:
    for mode, d, n, outputs in cells:
        peers = ["xrfm l2_high_dim", "plain torch"]
        if (n, outputs) == (1000, 1) and d <= 4096:
            peers.append("xrfm l2")
        size = {"n": n, "d": d, "outputs": outputs, "mode": mode}
        name = f"{mode} n={n} d={d} outputs={outputs}"
        store.cell(name, partial(one_fit, size, peers))


def one_fit(size: dict, peers: list[str]) -> dict:
    figures = size | {"peers": {}}
    for peer in peers:
        try:
            with DIRECTION.checked(**size, peer=peer) as case:
                first = case.first[peer]
                rounds = 1 if first > SLOW else 5
                taken = first if rounds == 1 else timing.seconds(case.works[peer], 5, 0)
                figures["peers"][peer] = case.figures | {"seconds": taken, "rounds": rounds}
        except Refused as failed:
            figures["peers"][peer] = {"refused": str(failed)}
    figures["seconds"] = own_seconds(**size)
    if size["outputs"] == 1 and size["mode"] == "median":
        n = size["n"]
        with PRODUCT.checked(n=n) as case:
            product = timing.seconds(case.works["torch.mm"], 9, 2)
        figures["rate"] = cases.operations(n, size["d"]) / figures["seconds"]
        figures["product_rate"] = 2 * n**3 / product
    return figures


def grid(store: Store) -> None:
    """The six points of neural_controllers on 32 layers; the peer on one layer, times 32."""

    def work() -> dict:
        size = {"layers": 32, "n": 512, "d": 4096, "held": 100, "iters": cases.ITERS}
        with GRID.checked(**size) as case:
            ours, peer = case.works.values()
            own = timing.seconds(ours, 3, 1)
            figures = {"seconds": own, "peer_seconds_per_layer": timing.once(peer)[1]}
        return figures | {"cosine": 1 - case.errors[OURS], "layers": size["layers"]}

    store.cell("grid of six, 32 layers, n=512 d=4096", work)


def concepts(store: Store) -> None:
    """512 concepts x 8 layers, measured on 64 concepts at a time."""

    def work() -> dict:
        n = 256
        with CONCEPTS.checked(batch=64 * 8, n=n, d=4096) as case:
            taken = case.first[OURS] * 8
        with PRODUCT.checked(n=4096) as case:
            rate = 2 * 4096**3 / timing.seconds(case.works["torch.mm"], 3, 1)
        tokens = 512 * n * 32  # examples of 32 tokens
        forward = 2 * 8e9 * tokens / rate
        return {"seconds": taken, "forward_seconds": forward, "share": taken / forward}

    store.cell("512 concepts x 8 layers, n=256 d=4096", work)


def streamed(store: Store) -> None:
    """n = 20,000 under two budgets, against double precision in the feature regime."""
    n, d, iters = 20_000, 2048, 2
    for gigabytes in (3, 1):
        name = f"streamed n={n} d={d} iters={iters} budget={gigabytes} GiB"
        size = {"n": n, "d": d, "iters": iters, "budget": gigabytes << 30}
        store.cell(name, partial(alone, size))


def growth(store: Store) -> None:
    """Compared at the first size; double precision would take minutes at the others."""
    kept = ("seconds", "peak", "iterations", "ridge_raised")

    def work(size: dict) -> dict:
        return {key: value for key, value in alone(size).items() if key in kept}

    for n in (5000, 10_000, 20_000, 40_000):
        size = {"n": n, "d": 2048, "iters": 1, "budget": 8 << 30, "compared": 5000}
        store.cell(f"growth n={n} d=2048 iters=1", partial(work, size))


def alone(size: dict) -> dict:
    with STREAMED_ALONE.checked(**size) as case:
        return case.figures


if __name__ == "__main__":
    main()
