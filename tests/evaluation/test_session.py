"""A stopped evaluation goes on, to the same result; what there is no time for is told."""

import json

import pytest

import expertsteer as es
from expertsteer.evaluation.equal_price import EqualPrice
from expertsteer.evaluation.methods import PAPER
from expertsteer.evaluation.session import Session
from expertsteer.support import progress
from helpers.equal_price import BUDGET, NEUTRAL
from helpers.tiny_tokenizer import sentence

pytestmark = pytest.mark.transformers

VALIDATED = "expert: Procrustes, validated pairs"
METHODS = ["target's own mean difference", VALIDATED, PAPER]
TASK = es.MultipleChoice.from_rows(
    [
        {"question": sentence(3 + i % 3, seed=i), "choices": ["w4", "w7", "w9"], "answer": i % 3}
        for i in range(20)
    ]
)


@pytest.fixture(scope="module")
def run(world):
    target, tokenizer, (own, _, expert) = world
    options = {"methods": METHODS, "budget": BUDGET, "random": 2, "method": PAPER, "examples": 2}
    options |= {"prompts": ["w1 "], "progress": False}

    def call(**more):
        return es.evaluate(target, tokenizer, TASK, expert, own, NEUTRAL, **options | more)

    return call


@pytest.fixture(scope="module")
def whole(run):
    return run()


@pytest.fixture
def searches(monkeypatch):
    """The vectors that a strength was searched for, one by one."""
    seen, searched = [], EqualPrice._validated

    def counted(self, vectors):
        seen.append(vectors.fingerprint)
        return searched(self, vectors)

    monkeypatch.setattr(EqualPrice, "_validated", counted)
    return seen


def figures(evaluation):
    """Everything but what it cost: the unsteered model runs again in every process."""
    found = json.loads(json.dumps(evaluation.to_dict()))
    found["comparison"].pop("seconds")
    found["settings"]["pair effects"].pop("passes over neutral texts")
    for row in (*found["comparison"]["rows"], *found["comparison"]["random"]):
        row.pop("passes")
    return found


class Stop(BaseException):
    """As ctrl-c would."""


@pytest.mark.parametrize("after", [1, 9, 20])
def test_a_stopped_evaluation_goes_on_to_the_same_result(run, whole, tmp_path, monkeypatch, after):
    file, searched, left = tmp_path / "kept.jsonl", EqualPrice._validated, [after]

    def failing(self, vectors):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return searched(self, vectors)

    monkeypatch.setattr(EqualPrice, "_validated", failing)
    with pytest.raises(Stop):
        run(keep=file)
    monkeypatch.setattr(EqualPrice, "_validated", searched)
    with file.open("a") as stream:
        stream.write('{"of": "half a li')  # killed while it wrote
    assert figures(run(keep=file)) == figures(whole)
    assert figures(run(keep=file)) == figures(whole)


def test_what_is_kept_is_not_measured_again(run, whole, tmp_path, searches):
    file = tmp_path / "kept.jsonl"
    run(keep=file)
    count = len(searches)
    again = run(keep=file)
    assert len(searches) == count > 0
    assert again.comparison.seconds > 0 and figures(again) == figures(whole)


def test_results_of_other_settings_stay_and_are_not_taken(run, tmp_path, searches, capsys):
    file = tmp_path / "kept.jsonl"
    run(keep=file)
    before, count = file.read_text(), len(searches)
    other = run(keep=file, budget=2 * BUDGET, progress=True)
    assert len(searches) > count and other.comparison.budget == 2 * BUDGET
    assert file.read_text().startswith(before)
    assert "of other models, texts or options" in capsys.readouterr().err
    count = len(searches)
    run(keep=file)  # both are there
    assert len(searches) == count


def test_the_verdicts_method_comes_first_and_the_rest_is_told(run, tmp_path, searches):
    file = tmp_path / "kept.jsonl"
    with pytest.warns(UserWarning, match="no strength curve of"):
        little = run(max_minutes=0, keep=file)
    names = [row.name for row in little.comparison.rows]
    assert PAPER in names and names[1] == "random directions, mean of 1"
    assert little.verdict and list(little.curves) == [PAPER]
    reason = "was not begun within max_minutes=0"
    missing = {METHODS[0], VALIDATED, "random direction 1"}
    assert little.comparison.skipped == dict.fromkeys(missing, reason)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    order = [entry["name"] for entry in kept if entry["kind"] == "row"]
    assert order[:3] == ["unsteered", "random direction 0", PAPER]


def test_how_long_it_takes_is_said_beforehand(run, capsys):
    run(progress=True)
    told = capsys.readouterr().err
    assert "evaluate: 5 rows, each at up to 4 choices of layers, and 4 strength curves" in told
    run()
    assert "evaluate:" not in capsys.readouterr().err


def test_an_estimate_counts_what_is_left(monkeypatch):
    from expertsteer.evaluation.session import Job

    session, clock = Session(max_minutes=1), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: session.started + clock[0])
    session.pass_seconds, clock[0] = 2.0, 10.0
    with progress.bars(False):
        session._ticked(progress.bar(1, "", False), [], 1, 10.0)
    jobs = [Job("a", "own", list, 3), Job("b", "own", list, 1)]
    # four settings of ten seconds, and for each row a test pass and one over the neutral texts
    assert session._expected(jobs) == pytest.approx(4 * 10 + 2 * (2 + 2))
    assert session.allows(50.0) and not session.allows(50.1) and session.allows(99.0, needed=True)
    with pytest.raises(ValueError, match="max_minutes must be a number from 0 on"):
        Session(max_minutes=-1)
