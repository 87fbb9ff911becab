"""Every benchmark with its gate: what is compared with what, to which bound, before it is timed.

    python -m benchmarks.registry            # the list, as markdown
    python -m benchmarks.registry NAME ...   # open these gates at their smallest size, on this CPU

A benchmark is a function that builds a `Case`: the works to be timed, what each gives, and what it
must give. `Benchmark.checked` is the one way to its works, and the gate stands in it, so nothing is
timed that was not compared. Both clocks take their works there: the tables `benchmarks.timing`,
``make bench`` pytest-benchmark, through `Benchmark.time`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import timing


class Refused(RuntimeError):
    """A result is out of bounds: no speed is reported."""


def require(right: bool, what: str) -> None:
    if not right:
        raise Refused(f"{what}; no speed is reported")


@dataclass(frozen=True)
class Gate:
    """A bound on how far what a work gives may be from what it must give.

    Attributes:
        compares: what with what, in words.
        bound: the largest error with which anything is timed.
        error: ``(found, expected) -> float``; infinite where a result is no result.
        unit: of the error, in words.
    """

    compares: str
    bound: float
    error: Callable[[Any, Any], float]
    unit: str = ""

    def open(self, found: Any, expected: Any, name: Hashable) -> float:
        """The error.

        Raises:
            Refused: it is out of bounds.
        """
        error = float(self.error(found, expected))
        told = f"{error:.2g} {self.unit}".strip()
        within = error <= self.bound
        require(within, f"{name}: {self.compares}: off by {told}, more than {self.bound:g}")
        return error


@dataclass
class Case:
    """A benchmark at one size.

    Attributes:
        works: what is timed, by name.
        found: what each gives, in the form that the gate compares.
        expected: what each must give; for all alike, or in a `ByWork`.
        beside: works that are only compared against, such as a peer whose error is reported.
        figures: accuracies that a table shows.
        first: seconds of the calls that gave `found`, for works that are timed once.
    """

    works: dict[Hashable, timing.Work]
    found: dict[Hashable, Any]
    expected: Any
    beside: tuple[Hashable, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    first: dict[Hashable, float] = field(default_factory=dict)
    errors: dict[Hashable, float] = field(default_factory=dict)


class ByWork(dict):
    """Expected results that differ from work to work."""


def called(works: dict[Hashable, timing.Work], read: Callable = lambda result: result) -> dict:
    """`found` and `first` of works whose results, read so, are what is compared."""
    results = {name: timing.once(work) for name, work in works.items()}
    return {
        "found": {name: read(result) for name, (result, _) in results.items()},
        "first": {name: seconds for name, (_, seconds) in results.items()},
    }


@dataclass(frozen=True)
class Benchmark:
    """A registered one; made by `benchmark`."""

    name: str
    gate: Gate
    build: Callable[..., Case]
    smallest: dict[str, Any]

    def judge(self, case: Case) -> Case:
        """The case with its errors.

        Raises:
            Refused: a result is out of bounds, or a work has none.
        """
        unjudged = set(case.works) - set(case.found) - set(case.beside)
        require(bool(case.found) and not unjudged, f"{self.name}: nothing compared: {unjudged}")
        for name, found in case.found.items():
            expected = case.expected
            expected = expected[name] if isinstance(expected, ByWork) else expected
            case.errors[name] = self.gate.open(found, expected, f"{self.name}, {name}")
        return case

    @contextmanager
    def checked(self, **size: Any) -> Iterator[Case]:
        """The case at this size once its gate is open; what it steers is undone at the end."""
        with ExitStack() as stack:
            yield self.judge(self.build(stack, **size))

    def time(
        self, fixture: Any, work: Hashable, group: str, size: dict, calls: int = 0, **rounds: int
    ) -> None:
        """By pytest-benchmark, after the gate; with ``calls``, those and then the GPU at rest."""
        with self.checked(**size) as case:
            call = case.works[work]
            run = timing.synchronised(call, calls) if calls else call
            fixture.group = group
            fixture.extra_info |= case.figures | {f"off by, {n}": e for n, e in case.errors.items()}
            fixture.pedantic(run, **({"rounds": 5, "warmup_rounds": 1} | rounds))


REGISTERED: dict[str, Benchmark] = {}


def benchmark(
    name: str, *, gate: Gate, smallest: dict[str, Any]
) -> Callable[[Callable[..., Case]], Benchmark]:
    """Register a builder ``(stack, **size) -> Case``; ``smallest`` is a size for a CPU in tests.

    The builder's name becomes the registered benchmark, a constant, hence its capitals.

    Raises:
        ValueError: a name that is taken, or something that cannot be a gate.
    """
    if name in REGISTERED:
        raise ValueError(f"name {name!r} is taken by another benchmark")
    if not isinstance(gate, Gate):
        raise ValueError(f"gate of {name} must be a Gate, came {gate!r}")

    def register(build: Callable[..., Case]) -> Benchmark:
        REGISTERED[name] = Benchmark(name, gate, build, smallest)
        return REGISTERED[name]

    return register


def registered() -> dict[str, Benchmark]:
    """All of them, after importing the files that register some."""
    here = Path(__file__).parent
    for file in sorted(here.glob("*/gates*.py")):
        import_module(f"benchmarks.{file.parent.name}.{file.stem}")
    return REGISTERED


def main(names: list[str]) -> None:
    from benchmarks.common import table

    known = registered()
    for name in names:
        with known[name].checked(**known[name].smallest) as case:
            print(f"{name}: {case.errors}")
    if not names:
        gates = ((name, b.gate) for name, b in known.items())
        rows = [(name, g.compares, f"{g.bound:g} {g.unit}".strip()) for name, g in gates]
        print(table(["benchmark", "compared before it is timed", "bound"], rows))


if __name__ == "__main__":
    # This file is `__main__` here; the gates register with the module of its own name.
    from benchmarks import registry

    registry.main(sys.argv[1:])
