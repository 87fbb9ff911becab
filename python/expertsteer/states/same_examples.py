"""Whether two captures can be compared example by example."""

from __future__ import annotations

from .states import HiddenStates, StoredStates


def require_same_examples(
    expert: HiddenStates | StoredStates,
    target: HiddenStates | StoredStates,
    names: tuple[str, str] = ("expert", "target"),
) -> None:
    """Raise ``ValueError`` unless both captures hold the same examples in the same order."""
    first, second = names
    if len(expert.labels) != len(target.labels):
        raise ValueError(
            f"{first} holds {len(expert.labels)} examples and {second} {len(target.labels)}; "
            "capture both models over the same contrast set"
        )
    differ = expert.labels != target.labels
    if expert.keys is not None and target.keys is not None:
        differ = differ | (expert.keys != target.keys)
    if bool(differ.any()):
        raise ValueError(
            f"{first} and {second} differ at example {int(differ.nonzero()[0])} (and at "
            f"{int(differ.sum())} in all): other examples, or the same in another order; "
            "capture both models over the same contrast set"
        )
    if expert.position != target.position:
        raise ValueError(
            f"{first} holds states at position {expert.position!r} and {second} at "
            f"{target.position!r}; capture both at one position"
        )
