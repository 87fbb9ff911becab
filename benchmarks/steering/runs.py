"""The measurements of injection: rows for the tables of `benchmarks.steering.table`, in rounds."""

from __future__ import annotations

from benchmarks.steering import cases, gates
from benchmarks.steering.gates import UNSTEERED
from benchmarks.steering.gates_compiled import COMPILED
from benchmarks.timing import added, interleave, middle, ratio


def layer_calls(width: int, budget: float, calls: int = 1000) -> list[dict]:
    """Microseconds per call."""
    with gates.LAYER_CALL.checked(width=width, calls=calls) as case:
        taken = interleave(case.works, budget)
    base = taken.pop("unsteered")
    return [
        {"hidden": width, "tool": tool, "added_us": added(own, base, calls)}
        for tool, own in taken.items()
    ] + [{"hidden": width, "tool": "unsteered", "us": middle([1e6 * s / calls for s in base])}]


def passes(width: int, batch: int, budget: float) -> list[dict]:
    """Microseconds per step and per steered layer."""
    with gates.PASS.checked(width=width, batch=batch) as case:
        taken = interleave(case.works, budget)
    base = taken.pop(UNSTEERED)
    size = {"hidden": width, "batch": batch, "unsteered_us": middle([1e6 * s for s in base])}
    return [
        size
        | {
            "tool": tool,
            "layers": name,
            "added_us_per_step": added(own, base, 1),
            "added_us_per_layer": added(own, base, max(1, len(cases.LAYERS[name]))),
        }
        for (tool, name), own in taken.items()
    ]


def thread_counts(width: int, batch: int, budget: float) -> list[dict]:
    """The unsteered step with one thread and with two, each after a warm-up of its own."""
    row = {"hidden": width, "batch": batch}
    for threads in (1, 2):
        with gates.THREADS.checked(width=width, batch=batch, threads=threads) as case:
            taken = interleave(case.works, budget)["unsteered"]
            row[f"ms, {threads}"] = 1e3 * middle(taken)["median"]
    return [row]


def whole_steps(width: int, batch: int, budget: float, repeats: int = 5) -> list[dict]:
    return repeated(gates.STEP, width, batch, budget, repeats, per="added_us_per_layer")


def compiled(width: int, batch: int, budget: float, repeats: int = 5) -> list[dict]:
    return repeated(COMPILED, width, batch, budget, repeats)


def repeated(
    registered, width: int, batch: int, budget: float, repeats: int, per: str = ""
) -> list[dict]:
    """Repeated with new modules, made in another order: where a model's objects lie in memory moves
    a figure by more than its rounds do. A second unsteered model shows by how much."""
    runs = []
    for turn in range(repeats):
        with registered.checked(width=width, batch=batch, turn=turn) as case:
            runs.append(interleave(case.works, budget / repeats))
    pooled = {key: sum((run[key] for run in runs), []) for key in runs[0]}
    rows = ratios(pooled, {"hidden": width, "batch": batch}, per)
    for row in rows:
        if "ratio" in row:
            key = row["tool"], row["layers"]
            row["each"] = [ratio(run[key], run[UNSTEERED])["median"] for run in runs]
    return rows


def decodes(width: int, batch: int, budget: float) -> list[dict]:
    new = cases.NEW_TOKENS[width, batch]
    with gates.DECODE.checked(width=width, batch=batch, new=new) as case:
        taken = interleave(case.works, budget)
    rows = ratios(taken, {"hidden": width, "batch": batch, "new_tokens": new})
    for row in rows:
        seconds = middle(taken[row["tool"], row["layers"]])["median"]
        row["tokens_per_s"] = batch * new / seconds
    return rows


def ratios(taken: dict, case: dict, per: str = "") -> list[dict]:
    """To the unsteered model, whose row comes first."""
    base = taken[UNSTEERED]
    rows = [case | {"tool": "unsteered", "layers": "0", "ms": 1e3 * middle(base)["median"]}]
    for (tool, name), own in taken.items():
        if (tool, name) == UNSTEERED:
            continue
        row = case | {"tool": tool, "layers": name, "ratio": ratio(own, base)}
        if per:
            row[per] = added(own, base, max(1, len(cases.LAYERS[name])))
        rows.append(row)
    return rows


def distinct_vectors(width: int, budget: float, batch: int = 256) -> list[dict]:
    """A decoding step of 256 sequences that share 1 vector, or have one each."""
    size, counts = {"width": width, "batch": batch}, (1, 8, 64, 256)
    rows = []
    for through in ("model", "additions alone"):
        with gates.DISTINCT.checked(**size, through=through, distinct=counts) as case:
            rows += distinct_rows(case, through, size, budget)
    with gates.READING.checked(**size) as case:
        return rows + distinct_rows(case, "reading alone (a sum)", size, budget)


def distinct_rows(case, through: str, size: dict, budget: float) -> list[dict]:
    taken = interleave(case.works, budget)
    told = {"through": through, "hidden": size["width"], "batch": size["batch"]}
    return [
        told
        | {"distinct": distinct, "ms": 1e3 * middle(own)["median"]}
        | {"ratio": ratio(own, taken[1])}
        for distinct, own in taken.items()
    ]
