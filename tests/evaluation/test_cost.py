"""The overhead of steering on one's own model: what is timed, what is not, and why."""

import json

import pytest
import torch

import expertsteer as es
from expertsteer.demo import checkpoint
from expertsteer.evaluation.cost import WAYS, bench
from helpers.command import run
from helpers.families import build


def small(family):
    return build(family, width=32).eval()


def test_every_way_is_timed_and_the_model_stays_what_it_was():
    model = small("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = bench(model, batch=2, prompt=4, tokens=3, rounds=3, show_progress=False)
    assert tuple(cost.way for cost in costs) == WAYS
    assert costs[0].ratio == (1.0, 1.0, 1.0)
    for cost in costs:
        assert cost.reason is None and cost.tokens_per_second > 0
        assert 0 < cost.ratio.low <= cost.ratio.mean <= cost.ratio.high
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert json.loads(json.dumps([cost.to_dict() for cost in costs]))


def test_a_model_that_cannot_be_folded_says_so_and_the_rest_is_timed():
    found = {c.way: c for c in bench(small("gemma2"), prompt=3, tokens=2, rounds=3)}
    assert found["fold"].ratio is None and "norm" in found["fold"].reason
    assert found["slot"].ratio is not None


def test_a_way_that_does_something_else_gets_no_speed(monkeypatch):
    plain = "expertsteer.evaluation.cost._adding"
    monkeypatch.setattr(plain, lambda added: lambda module, args, output: None)
    found = {c.way: c for c in bench(small("gpt2"), prompt=3, tokens=2, rounds=3)}
    for way in ("fold", "slot"):
        assert found[way].ratio is None and "differ from a plain hook" in found[way].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 2}, "rounds must be a whole number of at least 3, came 2"),
        ({"batch": 0}, "batch must be a whole number of at least 1, came 0"),
        ({"vectors": es.SteeringVectors({9: torch.ones(32)})}, "layer 9 is out of range"),
        ({"vectors": es.SteeringVectors({0: torch.ones(5)})}, "width 5"),
    ],
)
def test_bad_input_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        bench(small("llama"), **options)


def test_the_command_prints_a_table(tmp_path):
    given = ["bench", "--model", checkpoint("target"), "--tokens", 2, "--rounds", 3]
    done = run(*given, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert all(way in done.stdout for way in WAYS) and "time x unsteered" in done.stdout
    document = json.loads(run(*given, "--json", "--batch", 2).stdout)
    assert [way["way"] for way in document["ways"]] == list(WAYS) and document["batch"] == 2
    assert run(*given, "--threads", 0).returncode == 2
