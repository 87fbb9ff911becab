"""What a calibration costs, and a whole table of controls at equal price, on the demo's models.

python -m pytest benchmarks/calibration --benchmark-only
python -m benchmarks.calibration.table                       # the committed table
"""

import pytest

from benchmarks.calibration.gates import CONTROLS, SEARCH, SUBSETS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("search", ["calibrated", "bisected"])
def bench_calibration(benchmark, search):
    SEARCH.time(benchmark, search, "one strength at a budget", {}, rounds=7)
    passes = benchmark.extra_info[f"passes, {search}"]
    benchmark.extra_info["passes over the texts"] = passes


@pytest.mark.parametrize("subsets", [1, 2, 4, 8])
def bench_growth_with_settings(benchmark, subsets):
    SUBSETS.time(benchmark, "calibrate", "strengths of several layer subsets", {"subsets": subsets})


def bench_controls_table(benchmark):
    group = "all controls on the demo pair"
    CONTROLS.time(benchmark, "controls", group, {}, rounds=1, warmup_rounds=0)
