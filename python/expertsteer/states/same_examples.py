"""Whether two captures can be compared example by example."""

from __future__ import annotations

from .states import HiddenStates, StoredStates


def require_same_examples(
    expert: HiddenStates | StoredStates, target: HiddenStates | StoredStates
) -> None:
    """Raise ``ValueError`` unless both captures hold the same examples in the same order."""
    if len(expert.labels) != len(target.labels):
        raise ValueError(
            f"expert holds {len(expert.labels)} examples and target {len(target.labels)}; "
            "capture both models over the same contrast set"
        )
    differ = expert.labels != target.labels
    if expert.keys is not None and target.keys is not None:
        differ = differ | (expert.keys != target.keys)
    if bool(differ.any()):
        raise ValueError(
            f"expert and target differ at example {int(differ.nonzero()[0])} (and at "
            f"{int(differ.sum())} in all): other examples, or the same in another order; "
            "capture both models over the same contrast set"
        )
    if expert.position != target.position:
        raise ValueError(
            f"expert holds states at position {expert.position!r} and target at "
            f"{target.position!r}; capture both at one position"
        )
