"""The tables of injection: what steering adds to a layer, a step and a whole decode.

    python -m benchmarks.steering.peers install          # once, for the peers' columns
    python -m benchmarks.steering.table [--only PART ...] [--threads 1] [--budget 1.0]

writes ``results/inject_cpu.md`` and ``inject_cpu.json``; parts that are not asked for keep the
cells they had. A gate that stays shut ends the run before a speed is written.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.steering import cases, peers, runs
from benchmarks.steering.report import markdown

SIZES = [(width, batch) for width in cases.WIDTHS for batch in cases.BATCHES]  # --widths changes
PARTS = {
    "layer": lambda s: runs.layer_calls(256, 5 * s) + runs.layer_calls(1024, 3 * s),
    "pass": lambda s: sum((runs.passes(256, batch, 6 * s) for batch in cases.BATCHES), []),
    "threads": lambda s: sum((runs.thread_counts(*size, s) for size in SIZES), []),
    "step": lambda s: sum((runs.whole_steps(*size, 15 * s) for size in SIZES), []),
    "decode": lambda s: sum((runs.decodes(*size, 30 * s) for size in SIZES), []),
    "distinct": lambda s: runs.distinct_vectors(256, 10 * s),
    "compiled": lambda s: sum((runs.compiled(*size, 12 * s) for size in SIZES), []),
    "peers": lambda s: [
        peers.run(name, threads=torch.get_num_threads(), budget=4 * s, widths=widths())
        for name in peers.PEERS
    ],
}


def widths() -> list[int]:
    return sorted({width for width, _ in SIZES})


def stamped(rows: list[dict], stamp: dict) -> list[dict]:
    return [row | {"provenance": stamp} for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1, help="of torch: small models want one")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the time for rounds")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--widths", type=int, nargs="+", default=cases.WIDTHS)
    given = parser.parse_args()
    SIZES[:] = [size for size in SIZES if size[0] in given.widths]
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own, when compiling
    path = given.out / "inject_cpu.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    stamp = common.provenance() | {
        "budget": given.budget
    }  # before a result is written beside the sources
    for part in given.only:
        print(f"{part} ...", file=sys.stderr, flush=True)
        document[part] = stamped(PARTS[part](given.budget), stamp)
        common.write_json(path, document)
    text = markdown(document)
    (given.out / "inject_cpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
