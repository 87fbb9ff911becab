"""Whether fits are still as fast as the committed table says: our seconds now over those then.

    python -m benchmarks.rfm.check [--slower 1.5]

For the machine that made ``results/rfm_cpu.json``, idle: after any change to the RFM, before it is
committed. No peer runs, so it takes a minute or two. Ends with status 1 where a fit has become
slower by more than that factor.
"""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.common import RESULTS
from benchmarks.rfm.gates import own_seconds

STORED = RESULTS / "rfm_cpu.json"
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
        size = {key: cell[key] for key in ("n", "d", "outputs", "mode")}
        then, now = cell["seconds"], own_seconds(**size)
        if now > slower * then:  # once more, as a processor that was idle starts slowly
            now = min(now, own_seconds(**size))
        table.add_row(name, f"{then:.4f}", f"{now:.4f}", f"{now / then:.2f}")
        if now > slower * then:
            failed.append(name)
    Console().print(table)
    if failed:
        sys.exit(f"more than {slower:g} times slower than the table: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
