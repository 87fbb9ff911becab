"""The measurements of injection as markdown."""

from __future__ import annotations

from benchmarks import common
from benchmarks.steering import cases

NOTE = """\
Llamas of 16 layers with random weights, single precision, prompt of 16 tokens. The tools of a row
run on the same weights, in rounds whose order rotates; figures are medians over the rounds of what
they add to the unsteered call of the same round, or of their ratio to it, with the 95 % interval of
that median in brackets. Steps are repeated with new modules, made in another order; *each* has the
medians of the repetitions. Where the objects of a model come to lie in memory moves a figure by
more than its rounds do, and the second unsteered model shows how far. Before any is timed, logits
and tokens are compared with those of a plain hook. *0 layers* is a steering attached to all of
them, at strength 0. The first two tables leave the products of the layers out, so that what is put
around them is all there is to time; in a real step it runs on caches that the weights have just
passed through, and costs more.
"""


def spread(value: dict, form: str) -> str:
    return f"{value['median']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def rows_of(document: dict, part: str, **wanted) -> list[dict]:
    return [
        row
        for row in document.get(part, [])
        if all(row.get(key) == value for key, value in wanted.items())
    ]


def table(title: str, head: list[str], lines: list[list[str]], where: list[dict]) -> list[str]:
    """A section; what was not measured says so."""
    text = ["", f"## {title}", ""]
    if not lines:
        return [*text, "not measured"]
    text.append(common.table(head, lines))
    stamps = {tuple(row["provenance"].items()) for row in where if "provenance" in row}
    for stamp in sorted(stamps, key=str):
        text += ["", common.told(dict(stamp))]
    return text


def markdown(document: dict) -> str:
    parts = [layer_table, pass_table, step_table, decode_table, compiled_table, distinct_table]
    lines = ["# Injection on a CPU", "", "`python -m benchmarks.steering.table`", "", NOTE.strip()]
    for part in [*parts, peer_table]:
        lines += part(document)
    return "\n".join(lines) + "\n"


def layer_table(document: dict) -> list[str]:
    found = document.get("layer", [])
    lines = []
    for row in found:
        if "us" in row:
            figure = f"{spread(row['us'], '.3f')} in all"
        else:
            figure = "+" + spread(row["added_us"], ".3f")
        lines.append([str(row["hidden"]), row["tool"], figure])
    title = "One call of a layer that returns its input: microseconds"
    return table(title, ["hidden", "tool", "us"], lines, found)


def pass_table(document: dict) -> list[str]:
    found = document.get("pass", [])
    lines = [
        [
            str(row["batch"]),
            row["layers"],
            row["tool"],
            spread(row["added_us_per_step"], ".2f"),
            spread(row["added_us_per_layer"], ".2f") if row["layers"] != "0" else "",
            f"{row['unsteered_us']['median']:.0f}",
        ]
        for row in found
    ]
    title = "One decoding step through 16 layers that do nothing, hidden 256: microseconds"
    head = ["batch", "layers", "tool", "added per step", "per steered layer", "unsteered step"]
    return table(title, head, lines, found)


def by_size(document: dict, part: str, extra: str = "") -> tuple[list[list[str]], list[dict]]:
    found, lines = document.get(part, []), []
    for row in found:
        if row["tool"] == "unsteered":
            continue
        line = [str(row["hidden"]), str(row["batch"]), row["layers"], row["tool"]]
        line.append(spread(row["ratio"], ".3f"))
        if extra:
            line.append(spread(row[extra], ".2f") if row["layers"] != "0" else "")
        each = ", ".join(f"{median:.3f}" for median in row.get("each", []))
        lines.append([*line, each, str(row["ratio"]["rounds"])])
    return lines, found


def step_table(document: dict) -> list[str]:
    lines, found = by_size(document, "step", "added_us_per_layer")
    head = ["hidden", "batch", "layers", "tool", "x unsteered", "us per steered layer"]
    head += ["each", "rounds"]
    text = table("One decoding step with a cache", head, lines, found)
    steps = rows_of(document, "step", tool="unsteered")
    text += ["", "Unsteered step: " + sizes(steps, "ms") + "."] if steps else []
    threads = document.get("threads", [])
    if threads:
        figures = "; ".join(f"{n}: " + sizes(threads, f"ms, {n}") for n in (1, 2))
        text += ["", f"The unsteered step by threads of torch, {figures}."]
    return text


def sizes(rows: list[dict], key: str) -> str:
    return ", ".join(f"{row['hidden']} x {row['batch']} {row[key]:.2f} ms" for row in rows)


def decode_table(document: dict) -> list[str]:
    found, lines = document.get("decode", []), []
    for row in found:
        ratio = "ratio" in row
        lines.append(
            [str(row["hidden"]), str(row["batch"]), str(row["new_tokens"]), row["layers"]]
            + [row["tool"], f"{row['tokens_per_s']:.0f}"]
            + ([spread(row["ratio"], ".3f"), str(row["ratio"]["rounds"])] if ratio else ["", ""])
        )
    head = ["hidden", "batch", "new tokens", "layers", "tool", "tokens/s", "time x unsteered"]
    return table("Whole decodes with `generate`, greedy", [*head, "rounds"], lines, found)


def compiled_table(document: dict) -> list[str]:
    lines, found = by_size(document, "compiled")
    title = "One step compiled by `torch.compile` (inductor), static cache, against compiled"
    head = [
        "hidden",
        "batch",
        "layers",
        "tool",
        "x compiled unsteered",
        "each",
        "rounds",
    ]
    text = table(title, head, lines, found)
    measured = {row["hidden"] for row in found}
    missing = [f"hidden {width}: not measured." for width in cases.WIDTHS if width not in measured]
    return [*text, "", *missing] if missing and found else text


def distinct_table(document: dict) -> list[str]:
    found = document.get("distinct", [])
    lines = [
        [row["through"], str(row["distinct"]), f"{row['ms']:.3f}", spread(row["ratio"], ".3f")]
        for row in found
    ]
    title = "Distinct vectors in a batch of 256, hidden 256, all 16 layers"
    return table(title, ["through", "distinct", "ms per step", "x one vector"], lines, found)


def peer_table(document: dict) -> list[str]:
    found, lines = document.get("peers", []), []
    for peer in found:
        versions = peer.get("versions", {})
        name = f"{peer['tool']} {versions.get(peer['tool'], '')}".strip()
        for row in peer.get("rows", []):
            size = [str(row["hidden"]), str(row["batch"]), row["layers"]]
            if "failed" in row:
                lines.append([name, *size, row["failed"], "", "", ""])
                continue
            own = cases_of(document, row)
            figures = [spread(row["ratio"], ".3f"), spread(row["added_us"], ".1f")]
            lines.append([name, *size, *figures, f"{row['hook_ratio']['median']:.3f}", own])
        if "failed" in peer:
            lines.append([name, "", "", "", peer["failed"], "", "", ""])
    head = [
        "tool",
        "hidden",
        "batch",
        "layers",
        "time x unsteered",
        "us per steered layer and step",
    ]
    head += ["plain hook there", "our slot and fold (table above)"]
    title = "Other tools, whole decodes, each in an environment of its own"
    used = "; ".join(
        f"{peer['tool']} with transformers {peer['versions']['transformers']}"
        for peer in found
        if "versions" in peer
    )
    text = table(title, head, lines, found)
    measured = {row["hidden"] for peer in found for row in peer.get("rows", [])}
    missing = [f"hidden {width}: not measured." for width in cases.WIDTHS if width not in measured]
    text += ["", f"Environments: {used}."] if used else []
    return [*text, "", *missing] if missing and found else text


def cases_of(document: dict, row: dict) -> str:
    """Our ratios at the same size."""
    size = {key: row[key] for key in ("hidden", "batch", "layers")}
    ratios = [
        f"{own['ratio']['median']:.3f}"
        for tool in cases.OWN_TOOLS[:1:-1]
        for own in rows_of(document, "decode", tool=tool, **size)
    ]
    return ", ".join(ratios) or "not measured"
