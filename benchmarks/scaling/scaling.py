"""What a large fit costs in bytes, seconds and money: computed from operation counts and rates.

``python -m benchmarks.scaling.scaling`` prints the tables; ``--check`` measures the same steps on
this machine beside what the counts say; ``--write docs/scaling.md`` replaces the tables there.
Nothing here was measured on a GPU: its rates are assumptions, and options.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import common
from benchmarks.scaling import counts
from benchmarks.scaling.check import check_table
from expertsteer.rfm.plan import plan

GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Model:
    """A decoder: parameters, layers, width."""

    name: str
    parameters: float
    layers: int
    width: int


@dataclass(frozen=True)
class Job:
    """A fit: who teaches whom, over how many examples of how many tokens, with how many pairs."""

    expert: Model = Model("70B", 70.6e9, 80, 8192)
    target: Model = Model("8B", 8.0e9, 32, 4096)
    examples: int = 100_000
    tokens: int = 128
    pairs: int = 4
    iters: int = 3
    neutral_tokens: int = 100_000


@dataclass(frozen=True)
class Machine:
    """One GPU and its share of a node; every figure an assumption that an option changes."""

    half: float = 790e12  # operations per second of large bf16 products
    single: float = 60e12  # of large single-precision products
    memory: float = 141e9  # bytes
    bandwidth: float = 4.8e12  # bytes per second
    disk: float = 2e9  # bytes per second and node, read or written
    per_node: int = 8
    price: float = 3.0  # per GPU and hour
    prefill: float = 0.40  # share of `half` that a forward pass reaches
    algebra: float = 0.50  # share of `single` that the fits reach


@dataclass(frozen=True)
class Step:
    """One step: how many operations at which rate, bytes from or to the disk, pieces it has."""

    name: str
    operations: float
    rate: str
    disk: float = 0.0
    pieces: int = 10**9  # that may run side by side


def steps(job: Job) -> list[Step]:
    """Every step of the pipeline, with its operations (a product of two numbers counts two)."""
    e, t, n = job.expert, job.target, job.examples
    forward = 2 * n * job.tokens
    stored = {m.name: 2 * m.layers * n * m.width for m in (e, t)}  # bytes, bf16
    information = counts.information(n, (e.layers, e.width), (t.layers, t.width))
    aligned = job.pairs * counts.alignment(n, e.width, t.width)
    chosen = job.pairs * 2 * n * (e.width + t.width)  # bytes
    machine = plan(n, t.width, iters=job.iters, memory_budget=100 << 30)
    calibration = 12 * 2 * t.parameters * job.neutral_tokens
    return [
        Step("capture the expert", forward * e.parameters, "half", stored[e.name]),
        Step("capture the target", forward * t.parameters, "half", stored[t.name]),
        Step("information of all pairs", information, "single", sum(stored.values())),
        Step("align the chosen pairs", aligned, "single", chosen, job.pairs),
        Step(
            f"fit the directions ({machine.regime})",
            job.pairs * machine.operations[machine.regime],
            "single",
            0.0,
            job.pairs,
        ),
        Step("calibrate the strength", calibration, "half", 0.0, 12),
    ]


def seconds(step: Step, gpus: int, machine: Machine) -> float:
    """Computing and disk, whichever takes longer: they overlap."""
    share = machine.prefill if step.rate == "half" else machine.algebra
    computing = step.operations / (getattr(machine, step.rate) * share * min(gpus, step.pieces))
    nodes = -(-gpus // machine.per_node)
    return max(computing, step.disk / (machine.disk * nodes))


def efficiency(workers: int, batches: int, seed: int = 0) -> float:
    """Share of the time that ranks are busy when each takes the next chunk as it gets free.

    Simulated: chunks of log-normal length (sigma 0.6), taken in the order of the file.
    """
    draw = random.Random(seed)
    free = [0.0] * workers
    total = 0.0
    for _ in range(batches):
        length = draw.lognormvariate(0.0, 0.6)
        first = min(range(workers), key=free.__getitem__)
        free[first] += length
        total += length
    return total / (workers * max(free))


def tables(job: Job, machine: Machine) -> str:
    """Markdown: time and money per step and number of GPUs, then bytes."""
    rows, total = [], dict.fromkeys(GPUS, 0.0)
    for step in steps(job):
        times = {g: seconds(step, g, machine) for g in GPUS}
        total = {g: total[g] + times[g] for g in GPUS}
        cells = (f"{times[g]:,.0f}" if times[g] >= 1 else f"{times[g]:.2g}" for g in GPUS)
        rows.append([step.name, f"{step.operations:.1e}", *cells])
    hours = {g: g * total[g] / 3600 for g in GPUS}
    rows.append(["**all**", "", *(f"**{total[g]:,.0f}**" for g in GPUS)])
    rows.append(["GPU hours", "", *(f"{hours[g]:,.1f}" for g in GPUS)])
    money = (f"{hours[g] * machine.price:,.0f}" for g in GPUS)
    rows.append([f"money at {machine.price:g} per GPU hour", "", *money])
    times = common.table(["step", "operations", *(f"{g} GPU, s" for g in GPUS)], rows)
    memory = common.table(["what", "bytes"], _bytes(job, machine))
    balance = common.table(["ranks", "chunks of the file", "busy (simulated)"], _balance())
    return "\n\n".join([times, memory, balance])


def _bytes(job: Job, machine: Machine) -> list[list[str]]:
    rows = []
    for model in (job.expert, job.target):
        weights = 2 * model.parameters
        fits = -(-weights * 1.15 // machine.memory)
        note = f"{weights / 1e9:,.0f} GB (at least {fits:.0f} GPU each with room for activations)"
        rows.append([f"{model.name}: weights in bf16", note])
        states = 2 * model.layers * job.examples * model.width
        rows.append([f"{model.name}: states on disk, bf16", f"{states / 1e9:,.0f} GB"])
    layer = 4 * job.examples * (job.expert.width + job.target.width)
    rows.append(["one pair of layers in memory, single precision", f"{layer / 1e9:,.1f} GB"])
    machine_plan = plan(job.examples, job.target.width, iters=job.iters, memory_budget=100 << 30)
    for regime, needed in machine_plan.bytes.items():
        rows.append([f"directions, {regime}", f"{needed / 1e9:,.1f} GB"])
    return [*rows, ["the vectors", f"{4 * job.pairs * job.target.width / 1e3:,.0f} kB"]]


def _balance() -> list[list]:
    pairs = ((8, 400), (64, 400), (64, 3200))
    return [[workers, chunks, f"{efficiency(workers, chunks):.0%}"] for workers, chunks in pairs]


def main(
    examples: Annotated[int, typer.Option(help="Rows of the contrast set.")] = 100_000,
    tokens: Annotated[int, typer.Option(help="Tokens of an example, on average.")] = 128,
    pairs: Annotated[int, typer.Option(help="Layer pairs.")] = 4,
    price: Annotated[float, typer.Option(help="Of one GPU for one hour.")] = 3.0,
    half: Annotated[float, typer.Option(help="bf16 operations per second of a GPU.")] = 790e12,
    single: Annotated[float, typer.Option(help="fp32 operations per second.")] = 60e12,
    disk: Annotated[float, typer.Option(help="Bytes per second and node.")] = 2e9,
    check: Annotated[bool, typer.Option(help="Measure the steps on this machine.")] = False,
    write: Annotated[Path | None, typer.Option(help="Replace the tables in this file.")] = None,
) -> None:
    """Compute what a fit of a 70B expert for an 8B target costs."""
    job = Job(examples=examples, tokens=tokens, pairs=pairs)
    machine = Machine(half=half, single=single, disk=disk, price=price)
    found = {"computed": tables(job, machine)}
    if check:
        found["check"] = check_table()
    for text in found.values():
        typer.echo(text + "\n")
    if write is not None:
        document = write.read_text("utf-8")
        for name, text in found.items():
            document = _replaced(document, name, text)
        write.write_text(document, "utf-8")


def _replaced(document: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise typer.BadParameter(f"--write: the file needs one {begin!r} and one {end!r}")
    before, rest = document.split(begin)
    return before + begin + "\n" + text + "\n" + end + rest.split(end)[1]


if __name__ == "__main__":
    typer.run(main)
