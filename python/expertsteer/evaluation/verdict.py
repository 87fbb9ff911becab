"""What paired tests found, in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from ..support.numbers import equals, interval, p_text, setting, signed
from .statistics import LEVEL, PairedTest


def verdict(name: str, against: Mapping[str, PairedTest], level: float = LEVEL) -> str:
    """In plain words, whether a method beats every control it was tested against.

    A control that it does not beat may leave too little room to tell: where the test says so
    (``PairedTest.can_tell``), a second sentence gives the items that the control leaves open
    beside the number that significance takes.

    Args:
        name: of the method; against: its tests by the name of the control.

    Raises:
        ValueError: no tests.
    """
    if not against:
        raise ValueError("against must hold at least one test by the name of its control")
    lost = {control: test for control, test in against.items() if not test.beats(level)}
    shown = "; ".join(_difference(control, test) for control, test in (lost or against).items())
    if not lost:
        return f"{name} beats its controls ({shown})."
    sentence = f"{name} does NOT beat {' or '.join(lost)} ({shown})."
    blind = [_no_room(c, test, level) for c, test in lost.items() if not test.can_tell(level)]
    if blind:
        sentence += f" But the test cannot tell: {'; '.join(blind)}. Use harder or more items."
    return sentence


def _difference(control: str, test: PairedTest) -> str:
    d = test.difference
    kind, p = ("p", test.p_value) if test.adjusted is None else ("adjusted p", test.adjusted)
    return f"{interval(d, signed)} from {control}, {kind} {equals(p_text(p))}"


def _no_room(control: str, test: PairedTest, level: float) -> str:
    won = "winning all of them is not enough" if test.open_items else "nothing is left to win"
    family = f" after correction for {test.family} tests" if test.family > 1 else ""
    return (
        f"{control} has the highest score, 1, on all but {test.open_items} of {test.items} items; "
        f"{won}, since p < {setting(level)}{family} takes at least {test.least_wins(level)} items "
        "won and none lost"
    )
