"""Every example runs, and says what it is there to show."""

import runpy

import pytest

from helpers import ROOT

EXAMPLES = ROOT / "examples"
SHOWN = {
    "fit_and_steer.py": "what the expert knows",
    "vectors_per_request.py": "coast",
    "strength_at_a_price.py": "gives the specialist's answer",
    "concept_classifier.py": "AUC",
}


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out
