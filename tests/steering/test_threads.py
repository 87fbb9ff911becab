"""Several threads that attach, change, leave and run one model at a time."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LogitsProcessor

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.steered_models import assert_as_before, everything, llama, logits, tokens, vectors


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_of_several_threads_that_attach_at_once_one_succeeds(mode):
    model = llama()
    before, unsteered = everything(model), logits(model, tokens())
    threads, interval = 4, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(40):
                start = threading.Barrier(threads)

                def attach(seed, start=start):
                    start.wait(timeout=60)
                    return es.attach(model, vectors(seed=seed), mode=mode)

                asked = [pool.submit(attach, seed) for seed in range(threads)]
                errors = [one.exception() for one in asked]
                refused = [e for e in errors if e is not None]
                assert len(refused) == threads - 1
                assert all(isinstance(e, ValueError) for e in refused)
                asked[errors.index(None)].result().detach()
                assert_as_before(model, before)
    finally:
        sys.setswitchinterval(interval)
    assert torch.equal(logits(model, tokens()), unsteered)


def test_threads_that_attach_and_leave_in_turn_leave_nothing_behind():
    model = llama()
    before = everything(model)

    def turns(mode):
        taken = 0
        for _ in range(30):
            try:
                es.attach(model, vectors(), mode=mode).detach()
                taken += 1
            except ValueError:  # another thread has it
                pass
        return taken

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(turns, ("fold", "slot", "auto", "slot"))) > 0
    assert_as_before(model, before)


def test_a_steering_whose_object_was_lost_is_found():
    model, ids = llama(), tokens()
    unsteered = logits(model, ids)
    assert es.detach(model) is False
    for attached, asked in ((model, model), (model, model.model), (model.model, model)):
        es.attach(attached, vectors())
        with pytest.raises(ValueError, match=r"already steered.*expertsteer.detach\(model\)"):
            es.attach(model, vectors())
        assert es.detach(asked) is True and es.detach(asked) is False
        assert torch.equal(logits(model, ids), unsteered)
    with pytest.raises(ValueError, match="model must be an nn.Module, came str"):
        es.detach("model")


def test_one_that_left_does_not_take_away_what_came_after_it():
    model, ids = llama(), tokens()
    first = es.attach(model, vectors(), mode="slot")
    first.detach()
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    with es.attach(model, vectors(seed=8), mode="slot"):
        model(ids)  # checkpointing is looked at in a pass that records
        steered = logits(model, ids)
        watched = {n: vars(m).get("_gradient_checkpointing_func") for n, m in model.named_modules()}
        first.detach()
        assert torch.equal(logits(model, ids), steered)
        for name, module in model.named_modules():
            assert vars(module).get("_gradient_checkpointing_func") is watched[name]


class At(LogitsProcessor):
    """Calls ``action`` before the token of a step is chosen."""

    def __init__(self, step, action):
        self.step, self.action, self.seen = step, action, 0

    def __call__(self, ids, scores):
        if self.seen == self.step:
            self.action()
        self.seen += 1
        return scores


def generated(model, processor=None):
    ids = tokens(1)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=[] if processor is None else [processor],
        max_new_tokens=6,
        do_sample=False,
        use_cache=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(out.logits)


def of_another_thread(act, busy):
    """``act()`` here, while ``busy(paused)`` in another thread waits in ``paused()``."""
    reached, done = threading.Event(), threading.Event()

    def paused():
        reached.set()
        assert done.wait(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(busy, paused)
        assert reached.wait(timeout=60) or running.result()
        try:
            act()
        finally:
            done.set()
        return running.result(timeout=60)


LATER = {
    "strength": lambda s: s.set(strength=-0.6),
    "positions": lambda s: s.set(positions="generated"),
    "vectors": lambda s: s.set(vectors=-vectors()),
    "rows": lambda s: s.set_rows([None]),
    "silence": lambda s: s.set(strength=0.0),
    "leave": lambda s: s.detach(),
}


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_a_running_generate_goes_on_as_another_thread_says(mode, change):
    model, act = llama(), LATER[change]
    with es.attach(model, vectors(), strength=0.6, mode=mode):
        as_it_was = generated(model)
    with es.attach(model, vectors(), strength=0.6, mode=mode) as steering:
        want = generated(model, At(2, lambda: act(steering)))
    with es.attach(model, vectors(), strength=0.6, mode=mode) as steering:
        got = of_another_thread(
            lambda: act(steering), lambda paused: generated(model, At(2, paused))
        )
    assert torch.equal(got, want)
    torch.testing.assert_close(got[:3], as_it_was[:3])
    if change != "positions":  # which steer the last token before and after
        assert not torch.allclose(got[3:], as_it_was[3:], rtol=1e-2)


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("mode", ["auto", "slot"])
def test_a_running_pass_ends_whatever_another_thread_changes(mode, change):
    model, ids, act = llama(), tokens(1), LATER[change]
    with es.attach(model, vectors(), strength=0.6, mode=mode) as steering:
        act(steering)
        want = logits(model, ids)
    steering = es.attach(model, vectors(), strength=0.6, mode=mode)

    def one_pass(paused):
        layer = find_decoder(model).layers[2]  # of the steered ones one ran, one is to come
        hook = layer.register_forward_pre_hook(lambda *unused: paused())
        try:
            return logits(model, ids)
        finally:
            hook.remove()

    mixed = of_another_thread(lambda: act(steering), one_pass)
    assert bool(mixed.isfinite().all())
    torch.testing.assert_close(logits(model, ids), want)
    es.detach(model)


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_pass_that_began_unsteered_ends_so(mode):
    model, ids = llama(), tokens(1)
    unsteered = logits(model, ids)
    with es.attach(model, vectors(layers=(3,)), strength=0.0, mode=mode) as steering:

        def one_pass(paused):
            layer = find_decoder(model).layers[2]
            hook = layer.register_forward_pre_hook(lambda *unused: paused())
            try:
                return logits(model, ids)
            finally:
                hook.remove()

        mixed = of_another_thread(lambda: steering.set(strength=0.6), one_pass)
        if mode == "slot":  # what is a bias is one for every pass
            assert torch.equal(mixed, unsteered)
        assert not torch.allclose(logits(model, ids), unsteered)
