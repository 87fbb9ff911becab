"""The registry of benchmarks: none without a gate, and every gate open to right results only."""

import ast
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import registry
from benchmarks.registry import Benchmark, Case, Gate, Refused

ROOT = Path(registry.__file__).parent
# `timing` is the clock itself, and llama.cpp's own process times nothing; the study's seconds are
# bookkeeping and no claim.
APART = {"__init__.py", "conftest.py", "timing.py", "logits.py"}
STUDIES = {"study", "real"}  # they compare vectors, and time nothing but how long a cell took
FILES = [f for f in ROOT.rglob("*.py") if not STUDIES & set(f.relative_to(ROOT).parts)]
TIMED = sorted(f for f in FILES if f.name not in APART)
BENCHMARKS = registry.registered()
SLOW = {"steering.compiled", "calibration.controls", "states.ranks", "rfm.streamed_alone"}


def spoilt(found):
    """A result of the same form with every number wrong."""
    if isinstance(found, torch.Tensor):
        return -(found.roll(1, -1) if found.ndim else found) - 1
    if isinstance(found, dict):
        return {key: spoilt(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        made = [spoilt(value) for value in found]
        return type(found)(*made) if hasattr(found, "_fields") else type(found)(made)
    return "" if isinstance(found, str) else found


def names_in(file):
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    return {getattr(node, "attr", getattr(node, "id", None)) for node in nodes}


@pytest.mark.filterwarnings("ignore")  # tiny cases have few examples, and libraries say so
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in BENCHMARKS]
)
def test_a_gate_opens_at_the_smallest_size_and_stays_shut_for_each_wrong_result(name):
    benchmark = BENCHMARKS[name]
    if name in ("rfm.direction", "rfm.grid"):
        pytest.importorskip("xrfm")
    with ExitStack() as stack:
        case = benchmark.judge(benchmark.build(stack, **benchmark.smallest))
        assert case.errors.keys() == case.found.keys()
        for work, right in dict(case.found).items():
            case.found[work] = spoilt(right)
            with pytest.raises(Refused, match="no speed is reported"):
                benchmark.judge(case)
            case.found[work] = right
        benchmark.judge(case)


def test_a_benchmark_without_a_gate_cannot_be_registered():
    with pytest.raises(ValueError, match="gate"):
        registry.benchmark("none", gate=None, smallest={})
    with pytest.raises(TypeError, match="gate"):
        registry.benchmark("none", smallest={})
    with pytest.raises(ValueError, match="taken"):
        registry.benchmark(next(iter(BENCHMARKS)), gate=Gate("", 0.0, max), smallest={})


def test_no_work_is_given_out_that_was_not_compared():
    def of(*found, **case):
        made = Case({"one": int, "two": int}, dict.fromkeys(found, 0.0), 0.0, **case)
        gate = Gate("a figure with zero", 0.0, lambda found, expected: abs(found - expected))
        return Benchmark("made up", gate, lambda stack: made, {})

    with of("one", "two").checked() as case:
        assert case.errors == {"one": 0.0, "two": 0.0}
    with of("one", beside=("two",)).checked() as case:
        assert set(case.works) == {"one", "two"}
    for incomplete in (of("one"), of()):
        with pytest.raises(Refused, match="compared"), incomplete.checked():
            pass


def test_a_result_that_is_no_number_stays_outside():
    gate = Gate("a figure with zero", 1.0, lambda found, expected: found)
    assert gate.open(1.0, None, "at the bound") == 1.0
    for error in (1.01, float("inf"), float("nan")):
        with pytest.raises(Refused):
            gate.open(error, None, "beyond")


def test_only_one_file_reads_a_clock():
    clocks = {"perf_counter", "process_time", "monotonic", "elapsed_time"}
    for file in TIMED:
        assert not clocks & names_in(file), f"{file.name} reads a clock of its own"


def test_every_file_that_times_uses_a_registered_benchmark_and_every_benchmark_is_timed():
    timed = set()
    for file in TIMED:
        module = import_module(".".join(file.relative_to(ROOT.parent).with_suffix("").parts))
        found = benchmarks_of(module)
        if file.name.startswith("bench_") or "table" in file.name:
            assert found, f"{file.name} times without a registered benchmark"
        if not file.name.startswith(("gates", "registry")):
            timed |= found
    assert timed == set(BENCHMARKS)


def benchmarks_of(module):
    """Names of the registered benchmarks that a file imports, or a file that it imports has."""
    values = list(vars(module).values())
    values += [v for m in values if isinstance(m, ModuleType) for v in vars(m).values()]
    return {v.name for v in values if isinstance(v, Benchmark) and BENCHMARKS[v.name] is v}


def test_what_runs_beside_other_tools_needs_nothing_of_this_package():
    code = "import sys, benchmarks.steering.peers; sys.exit('expertsteer' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
