"""What expert and target tell apart, each by itself: whether a vector can help at all."""

from __future__ import annotations

from .health_report import PairHealth
from .wording import layers_named, value_range


def told_apart(pairs: tuple[PairHealth, ...], limit: float) -> tuple[str, ...]:
    """A sentence for each case that occurs among the pairs whose two AUCs are known.

    Args:
        limit: an AUC above it tells the classes apart. It is the same for both sides, since both
            are measured on the same rows: what unrelated scores pass once in forty.
    """
    cases: dict[tuple[bool, bool], list[PairHealth]] = {}
    for p in pairs:
        if p.auc is not None and p.target_auc is not None:
            cases.setdefault((p.auc > limit, p.target_auc > limit), []).append(p)
    return tuple(
        _CASES[case].format(
            where=layers_named(cases[case], "pair"),
            expert=value_range([p.auc for p in cases[case]]),
            target=value_range([p.target_auc for p in cases[case]]),
        )
        for case in _CASES
        if case in cases
    )


def said_beforehand(pairs: tuple[PairHealth, ...]) -> tuple[str, ...]:
    """What an export would refuse later, of layers that the fit knows already."""
    if all(p.target_layer for p in pairs):
        return ()
    return (
        "there is a vector at target layer 0, which steers here and in every export but one: a "
        "GGUF control vector for llama.cpp has no place for it; for that, export the other layers "
        "(--layers)",
    )


_CASES = {
    (True, True): (
        "expert (AUC {expert}) and target (AUC {target}) both tell the classes apart at {where}: "
        "the target has this distinction already, and a constant vector may turn its behaviour "
        "along it; compare with the target's own vectors, which need no expert"
    ),
    (True, False): (
        "the expert tells the classes apart (AUC {expert}), the target does not (AUC {target}) at "
        "{where}: a direction there finds nothing in the target to amplify, and no constant vector "
        "brings knowledge that the target lacks; look for target layers with a higher AUC"
    ),
    (False, True): (
        "the target tells the classes apart by itself (AUC {target}), the expert does not (AUC "
        "{expert}) at {where}: the expert has nothing to add; use the target's own vectors"
    ),
    (False, False): (
        "neither the expert (AUC {expert}) nor the target (AUC {target}) tells the classes apart "
        "at {where}: expect no more of a vector from there than of a random one"
    ),
}
