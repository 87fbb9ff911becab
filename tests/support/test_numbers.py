"""Numbers are shown by one file, and what is shown is the number."""

from __future__ import annotations

import ast
import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import expertsteer
from expertsteer.evaluation.comparison import Comparison, ComparisonRow
from expertsteer.evaluation.statistics import Interval
from expertsteer.reporting.terminal import comparison_table
from expertsteer.support import numbers
from expertsteer.support.numbers import fixed, interval, number, p_text, rough, setting, short

PACKAGE = Path(expertsteer.__file__).parent
NUMBERS = PACKAGE / "support/numbers.py"


@given(st.floats(-1e6, 1e6), st.integers(0, 4), st.booleans(), st.booleans())
def test_fixed_places_are_the_number_to_half_a_unit_of_the_last(value, places, bare, signed):
    text = fixed(value, places, bare=bare, signed=signed)
    assert float(text) == pytest.approx(value, abs=0.5001 * 10**-places)
    assert not (bare and places) or not text.lstrip("+-").startswith("0.")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-10.37, "-10.37"), (20.4, "20.40"), (0.54, ".54"), (-0.2, "-.20"), (-0.001, ".00"),
     (100.05, "100.05"), (math.nan, "-"), (None, "-"), (math.inf, "inf")],
)  # fmt: skip
def test_the_zero_before_the_point_goes_below_one_only(value, shown):
    assert fixed(value, bare=True) == shown


@given(st.floats(-1e6, 1e6))
def test_every_way_to_show_a_number_keeps_two_digits_of_it(value):
    for show in (number, short, setting, numbers.signed):
        read = float(show(value).replace(numbers.MINUS, "-"))
        assert read == pytest.approx(value, rel=0.0501, abs=1e-300)
    assert float(rough(value)) == pytest.approx(value, rel=0.5, abs=1e-300)


def test_a_comparison_shows_scores_of_any_size():
    scores = [(-10.37, -10.9, -9.99), (20.4, 20.04, 20.8), (0.5, 0.4, 0.6), (-0.05, -0.5, 0.0)]
    rows = tuple(
        ComparisonRow(f"method {i}", "given", Interval(*score), (score[0],), 0.1, strength=10.05)
        for i, score in enumerate(scores)
    )
    comparison = Comparison(rows, (), {}, 0.1, "kl", 0, 1.0)
    console = Console(width=200, file=io.StringIO())
    console.print(comparison_table(comparison, "scores"))
    text = console.file.getvalue()
    shown = re.findall(r"method \d [^\d.-]*(\S+) \[(\S+), (\S+)\]", text)
    assert [tuple(map(float, parts)) for parts in shown] == scores


def test_an_interval_and_p_values():
    assert interval((0.5, 0.25, 20.4), lambda v: fixed(v, bare=True)) == ".50 [.25, 20.40]"
    assert [p_text(p) for p in (0.031, 1.0, 1e-5, None)] == ["0.031", "1", "< 0.0001", "–"]


def formats(path: Path) -> list[str]:
    """Numbers that a file formats by itself."""
    tree = ast.parse(path.read_text("utf-8"))
    specs = [
        (node.lineno, "".join(part.value for part in node.format_spec.values
                              if isinstance(part, ast.Constant)))
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None
    ]  # fmt: skip
    return [f"{path.name}:{line}: {spec}" for line, spec in specs if re.search(r"[,.gfe%]", spec)]


def test_no_other_file_formats_numbers_by_itself():
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path != NUMBERS]
    assert [found for path in files for found in formats(path)] == []
    assert formats(NUMBERS)
    pages = "".join(path.read_text() for path in PACKAGE.rglob("*.j2"))
    assert ".format(" not in pages and "|round" not in pages
