"""The steps of a fit measured at sizes that fit here, beside what their operation counts say."""

from __future__ import annotations

from benchmarks import common, timing
from benchmarks.rfm.gates import PRODUCT
from benchmarks.scaling import counts
from benchmarks.scaling.gates import LAYERS, PAIRS, STEPS
from expertsteer.rfm.plan import plan

SIZES = ((1000, 512, 384), (2000, 1024, 768), (4000, 1024, 768))  # examples, widths of both sides


def product_rate(size: int = 1536) -> float:
    """Operations per second of a large single-precision product here."""
    with PRODUCT.checked(n=size) as case:
        return 2 * size**3 / fastest(case.works["torch.mm"])


def fastest(work: timing.Work) -> float:
    return min(timing.taken(work, 3))


def check_table(sizes: tuple = SIZES) -> str:
    """Markdown: seconds of each step, and its operations as a share of the product rate.

    A count is good for prediction where the share stays the same while the problem grows.
    """
    rate = product_rate()
    columns = [measured(*size) for size in sizes]
    heads = ["step", *(f"n={n}, widths {e} and {t}" for n, e, t in sizes)]
    rows = [
        [name, *(f"{s:.2f} s, {ops / s / rate:.0%}" for s, ops in (c[name] for c in columns))]
        for name in columns[0]
    ]
    stamp = common.told(common.provenance())
    return f"{common.table(heads, rows)}\n\nProduct rate {rate / 1e9:.0f} GFLOP/s; {stamp}."


def measured(n: int, width_e: int, width_t: int) -> dict[str, tuple[float, float]]:
    """Step -> seconds and operations."""
    fitted = plan(int(0.8 * n), width_t, iters=3)
    operations = {
        "information of all pairs": counts.information(
            n, (LAYERS[0], width_e), (LAYERS[1], width_t)
        ),
        "align the chosen pairs": len(PAIRS) * counts.alignment(n, width_e, width_t),
        "fit the directions": len(PAIRS) * fitted.operations[fitted.regime],
    }
    with STEPS.checked(n=n, width_e=width_e, width_t=width_t) as case:
        return {name: (fastest(work), operations[name]) for name, work in case.works.items()}
