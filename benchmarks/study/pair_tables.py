"""Tables of layer pairs and kinds of vectors, by expert and number of examples."""

from __future__ import annotations

from benchmarks.common import table
from benchmarks.study.method_tables import BEST_RANDOM, PRESENT, VARIANCE
from benchmarks.study.rules import RULES, correlation
from benchmarks.study.tables import (
    Cells,
    Value,
    by_seed,
    difference,
    differences,
    group_title,
    mean_of,
    of_kind,
    of_rule,
    of_single,
    own,
    pair_groups,
    random_scores,
    shown,
)
from expertsteer.evaluation.methods import OWN

LOWEST = {  # kinds of vectors on the pairs of lowest information, and how the tables call them
    "procrustes, rfm of habit": "Procrustes, RFM with the field's habit",
    "procrustes, mean difference": "Procrustes, mean difference",
    "ridge, rfm": "ridge, RFM",
    "ridge, mean difference": "ridge, mean difference",
    "bare, rfm": "bare auto-encoder, RFM",
    "identity, rfm": "identity, RFM",
    "identity, rfm, same layers": "identity, RFM, pairs of the same layer",
}
TASKS = ("demo", "early", "stories")
CORRELATED = {"nats": "information", "auc": "AUC", "explained": "explained variance"}


def experts_table(cells: Cells, task: str, size: int) -> str:
    """Kinds of vectors by expert; pairs of lowest information, target layer by validation."""
    groups = [group for group in pair_groups(cells, task) if group[1] == size]
    kinds: dict[str, Value] = {
        "Procrustes, RFM (default)": PRESENT,
        "Procrustes, RFM, validated pairs": of_rule("validated"),
        "Procrustes, RFM, random pairs": of_rule("random"),
    }
    kinds |= {title: of_kind(name) for name, title in LOWEST.items()}
    rows = []
    for title, value in kinds.items():
        line = [mean_of(by_seed(cells, task, group, value)) for group in groups]
        if any(m.count for m in line):
            rows.append([title, *map(shown, line)])
    for name in OWN:
        rows.append([name, *[shown(mean_of(own(cells, task, size, name)))] * len(groups)])
    return table(["vector", *(group[0] for group in groups)], rows)


def own_table(cells: Cells, task: str) -> str:
    """The default minus the target's own vectors, paired by seed, by expert and size."""
    groups, found = pair_groups(cells, task), {}
    for group in groups:
        default = by_seed(cells, task, group, PRESENT)
        for name in OWN:
            found[group, name] = difference(default, own(cells, task, group[1], name))
        best = max(random_scores(cells, task), default=float("nan"))
        found[group, BEST_RANDOM] = difference(default, dict.fromkeys(default, best))
    found = {key: m for key, m in found.items() if m.count}
    columns = (*OWN, BEST_RANDOM)
    return differences("default minus", groups, columns, found, group_title)


def kinds_table(cells: Cells, task: str) -> str:
    """Other alignments and vectors minus the default, paired by seed, by expert and size."""
    groups, found = pair_groups(cells, task), {}
    for group in groups:
        default = by_seed(cells, task, group, PRESENT)
        for name in LOWEST:
            other = by_seed(cells, task, group, of_kind(name))
            found[group, name] = difference(other, default)
    found = {key: m for key, m in found.items() if m.count}
    return differences("minus default", groups, list(LOWEST), found, group_title, LOWEST.get)


def rules_table(cells: Cells, task: str) -> str:
    """Pairing rules minus random pairing; the target layer is chosen on validation."""
    groups, rules, found = pair_groups(cells, task), (*RULES, "validated"), {}
    for group in groups:
        chance = by_seed(cells, task, group, of_rule("random"))
        for rule in rules:
            found[group, rule] = difference(by_seed(cells, task, group, of_rule(rule)), chance)
    return differences("minus random pairs", groups, rules, found, group_title)


def against_lowest_table(cells: Cells) -> str:
    """Rules minus lowest information, of every task; the target layer is chosen on validation."""
    rules = ("random", "expert's last layer", "highest validation AUC", "validated")
    groups = [(task, *group) for task in TASKS for group in pair_groups(cells, task)]
    found = {}
    for task, *group in groups:
        lowest = by_seed(cells, task, group, PRESENT)
        for rule in rules:
            value = by_seed(cells, task, group, of_rule(rule))
            found[(task, *group), rule] = difference(value, lowest)
    title = "{0[0]}: {0[1]}, {0[2]}".format
    return differences("minus lowest information", groups, rules, found, title)


def directions_table(cells: Cells) -> str:
    """The target's own vectors: the RFM minus the others, paired by seed."""
    rfm, others = "target's own RFM", [name for name in OWN if name != "target's own RFM"]
    firsts = {"demo": "bundled", "early": "bundled", "stories": "itself"}
    groups = [(t, n) for t in TASKS for e, n in pair_groups(cells, t) if e == firsts[t]]
    found = {}
    for task, n in groups:
        for name in others:
            found[(task, n), name] = difference(own(cells, task, n, rfm), own(cells, task, n, name))
    return differences("own RFM minus", groups, others, found, group_title)


def single_table(cells: Cells, task: str) -> str:
    """One pair over all layers by rule, minus the mean of all pairs; nothing validated."""
    groups, found = pair_groups(cells, task), {}
    rules = ("lowest information", "highest information", VARIANCE)
    for group in groups:
        chance = by_seed(cells, task, group, of_single("random"))
        for rule in rules:
            found[group, rule] = difference(by_seed(cells, task, group, of_single(rule)), chance)
    return differences("minus the mean pair", groups, rules, found, group_title)


def correlations_table(cells: Cells, task: str) -> str:
    """Rank correlations with the test probability, over all pairs and within target layers."""
    groups, found = pair_groups(cells, task), {}
    columns = [(of, within) for of in CORRELATED for within in (False, True)]
    for group in groups:
        for of, within in columns:

            def value(cell: dict, of: str = of, within: bool = within) -> float:
                return correlation(cell, of, "probability", within)

            found[group, (of, within)] = mean_of(by_seed(cells, task, group, value))
    found = {key: m for key, m in found.items() if m.count}

    def title(column: tuple[str, bool]) -> str:
        return CORRELATED[column[0]] + (", within target layers" if column[1] else ", all pairs")

    return differences("rank correlation of", groups, columns, found, group_title, title)
