"""Whether fits are still as fast as the committed table says: our seconds now over those then.

    python -m benchmarks.rfm.check [--slower 1.5]

For the machine that made ``results/rfm_cpu.json``, idle: after any change to the RFM, before it is
committed. No peer runs, so it takes a minute. Ends with status 1 where a fit has become slower by
more than that factor; what a fit finds is the tests' business.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rfm import cases

STORED = Path(__file__).parents[1] / "results" / "rfm_cpu.json"
LONGEST = 2.0  # seconds of a cell that is still timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slower", type=float, default=1.5, help="factor that is too much")
    slower = parser.parse_args().slower
    table = Table("fit", "then", "now", "factor", title="Our seconds per fit")
    failed = []
    for name, cell in json.loads(STORED.read_text()).items():
        if "mode" not in cell or cell["seconds"] > LONGEST:
            continue
        then, now = cell["seconds"], seconds(cell)
        if now > slower * then:  # once more, as a processor that was idle starts slowly
            now = min(now, seconds(cell))
        table.add_row(name, f"{then:.4f}", f"{now:.4f}", f"{now / then:.2f}")
        if now > slower * then:
            failed.append(name)
    Console().print(table)
    if failed:
        sys.exit(f"more than {slower:g} times slower than the table: {'; '.join(failed)}")


def seconds(cell: dict) -> float:
    """Median of the cell's own fit, as `table_rfm.py` takes it."""
    constant = cell["mode"] == "constant"
    X, y = cases.problem(cell["n"], cell["d"], cell["outputs"])
    mode = cases.CONSTANT if constant else cases.MEDIAN
    X = cases.at_distance(X) if constant else X
    return cases.seconds(lambda: cases.ours(X, y, mode), 9, 2)


if __name__ == "__main__":
    main()
