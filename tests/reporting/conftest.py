"""A report that is written once, and reports without charts."""

import pytest

from expertsteer.reporting.page import write_report
from helpers.evaluations import an_evaluation


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder of a whole report, and its page."""
    folder = tmp_path_factory.mktemp("report")
    path = write_report(an_evaluation(), folder)
    return folder, path.read_text("utf-8")


@pytest.fixture
def no_charts(monkeypatch):
    """As without matplotlib: faster, where only the words matter."""
    monkeypatch.setattr("expertsteer.reporting.page.can_plot", lambda: False)
