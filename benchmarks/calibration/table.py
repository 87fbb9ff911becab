"""What calibrations and a whole table of controls cost: results/calibrate_cpu.md.

``python -m benchmarks.calibration.table`` runs bench_calibration.py and keeps its figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "calibrate_cpu.md"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command = [sys.executable, "-m", "pytest", "-q", str(HERE / "bench_calibration.py")]
        command += ["--benchmark-only", f"--benchmark-json={found}"]
        subprocess.run(command, check=True)
        document = json.loads(found.read_text("utf-8"))
    commit = document["commit_info"]["id"][:7]
    cpu = document["machine_info"]["cpu"]["brand_raw"]
    lines = [
        "# Calibration and controls on a CPU\n",
        f"`python -m benchmarks.calibration.table`, one thread of {cpu}, commit {commit}, "
        f"{document['datetime'][:10]}. Medians; a result that misses its budget gets no time. The "
        "peer bisects one strength at a time from the same start.\n",
        "| what | seconds | passes over the texts |",
        "|---|---|---|",
    ]
    for bench in sorted(document["benchmarks"], key=lambda b: b["group"]):
        passes = bench["extra_info"].get("passes over the texts", "")
        name = bench["name"].removeprefix("bench_").replace("_", " ")
        lines.append(f"| {name} | {bench['stats']['median']:.2f} | {passes} |")
    RESULT.write_text("\n".join(lines) + "\n", "utf-8")
    print(RESULT.read_text("utf-8"))


if __name__ == "__main__":
    main()
