"""The measurements of the RFM as markdown and as a picture."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.rfm.cases import REG


def markdown(cells: dict) -> str:
    fits = [fit_line(cell) for cell in cells.values() if "peers" in cell]
    for c in (1, 4):
        for n in (250, 500, 1000, 2000):
            if f"median n={n} d=8192 outputs={c}" not in cells:
                fits.append(["median", n, 8192, c, *["not measured"] * 5])
    others = {name: cell for name, cell in cells.items() if "peers" not in cell}
    rest = [[name, describe(cell)] for name, cell in others.items()]
    return f"""\
# RFM on a CPU

{common.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, xRFM \
{version("xrfm")}. `python -m benchmarks.rfm.table`; every cell's commit and date are in \
`rfm_cpu.json`. Ratios are a peer's seconds over ours, in the same run.

## One problem, five iterations, direction included

{common.table(HEADS, fits)}

One run of a peer instead of the median of five where marked *. No speed is reported where our \
predictions are more than 1e-4 and twice the peer's error away from double precision.

## The rest

{common.table(["what", "figures"], rest)}
"""


HEADS = [
    "bandwidth",
    "n",
    "d",
    "outputs",
    "xRFM `l2_high_dim` + `eigh`",
    "plain torch, d space",
    "xRFM `l2`",
    "error (ours / xRFM)",
    "share of a plain product's rate",
]


def fit_line(cell: dict) -> list:
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
    ratios = [ratio(name) for name in ("xrfm l2_high_dim", "plain torch", "xrfm l2")]
    return [cell["mode"], cell["n"], cell["d"], cell["outputs"], *ratios, errors, share]


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
        text += f", ridge raised from {REG:g}, which single precision cannot solve"
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
