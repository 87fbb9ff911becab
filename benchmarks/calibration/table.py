"""What calibrations and a whole table of controls cost: results/calibrate_cpu.md.

``python -m benchmarks.calibration.table`` runs bench_calibration.py and keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common
from benchmarks.calibration import bench_calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    result = parser.parse_args().out / "calibrate_cpu.md"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command = [sys.executable, "-m", "pytest", "-q", bench_calibration.__file__]
        command += ["--benchmark-only", f"--benchmark-json={found}"]
        subprocess.run(command, check=True, cwd=common.ROOT)
        document = json.loads(found.read_text("utf-8"))
    text = markdown(document["benchmarks"])
    result.write_text(text, "utf-8")
    print(text)


def markdown(benchmarks: list[dict]) -> str:
    """Medians in seconds, by group."""
    rows = []
    for bench in sorted(benchmarks, key=lambda b: b["group"]):
        passes = bench["extra_info"].get("passes over the texts", "")
        name = bench["name"].removeprefix("bench_").replace("_", " ")
        rows.append([name, f"{bench['stats']['median']:.2f}", passes])
    return f"""\
# Calibration and controls on a CPU

`python -m benchmarks.calibration.table`, one thread of {common.processor()}, commit \
{common.commit()}, {common.today()}. Medians; a result that misses its budget gets no time. The \
peer bisects one strength at a time from the same start.

{common.table(["what", "seconds", "passes over the texts"], rows)}
"""


if __name__ == "__main__":
    main()
