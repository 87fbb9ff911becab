"""Attaching, changing and leaving, interrupted (Ctrl-C) before any line of the package."""

import random
import sys
from pathlib import Path

import pytest
import torch

import expertsteer as es
from helpers.steered_models import (
    assert_as_before,
    everything,
    gpt2,
    llama,
    logits,
    tokens,
    vectors,
)

PACKAGE = str(Path(es.__file__).parent)


class Interrupt:
    """Raises `KeyboardInterrupt` before the n-th line that runs in the package; counts them."""

    def __init__(self, at=None):
        self.at, self.lines = at, 0

    def __enter__(self):
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error):
        sys.settrace(self._outer)

    def _call(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self._line


def interrupted(prepare, act, most):
    """``act(prepare())``, interrupted at up to ``most`` of its lines; gives what was prepared."""
    act(prepare())  # what is imported and looked up once is not counted
    given = prepare()
    with Interrupt() as counted:
        act(given)
    lines = range(1, counted.lines + 1)
    for at in sorted(random.Random(0).sample(lines, min(most, len(lines)))):
        given = prepare()
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            act(given)
        yield at, given


CASES = [(llama, "fold"), (llama, "slot"), (gpt2, "fold")]
CHANGES = [
    {"strength": 0.7, "positions": "all"},
    {"positions": "last"},  # goes over from biases to slots
    {"vectors": -vectors()},
]


@pytest.mark.parametrize("build, mode", CASES)
def test_attaching_can_be_interrupted_anywhere(build, mode):
    model = build()
    before = everything(model)

    def prepare():
        es.detach(model)
        return model

    for _, _ in interrupted(prepare, lambda m: es.attach(m, vectors(), mode=mode), most=120):
        es.detach(model)
        assert_as_before(model, before)


@pytest.mark.parametrize("build, mode", CASES)
def test_leaving_can_be_interrupted_anywhere_and_finished(build, mode):
    model = build()
    before = everything(model)

    def prepare():
        es.detach(model)
        return es.attach(model, vectors(), mode=mode)

    for at, steering in interrupted(prepare, es.Steering.detach, most=1000):
        (steering.detach if at % 2 else lambda: es.detach(model))()
        assert_as_before(model, before)
        assert es.detach(model) is False


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
@pytest.mark.parametrize("build, mode", [(llama, "auto"), (llama, "slot"), (gpt2, "auto")])
def test_a_change_that_is_interrupted_is_made_or_not(build, mode, change):
    model, ids = build(), tokens()
    before, unsteered = everything(model), logits(model, ids)
    with es.attach(model, vectors(), strength=0.4, mode=mode) as steering:
        old = logits(model, ids)
        new = logits(model, ids) if steering.set(**change) else None

    def prepare():
        es.detach(model)
        return es.attach(model, vectors(), strength=0.4, mode=mode)

    seen = set()
    for _, steering in interrupted(prepare, lambda s: s.set(**change), most=50):
        states = [old, new] if steering.attached else [unsteered]
        now = logits(model, ids)
        close = [torch.allclose(now, state, rtol=1e-4, atol=1e-4) for state in states]
        assert any(close)
        seen.add(close.index(True))
        steering.detach()
        assert_as_before(model, before)
    assert 0 in seen
