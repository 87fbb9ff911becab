"""What positions and rows cannot serve is refused, and what they did not do is told."""

import pytest
import torch

import expertsteer as es
from helpers.steered_models import hooks_that_choose, llama, logits, tokens, vectors

pytestmark = pytest.mark.transformers


def test_what_is_given_per_sequence_serves_no_other_batch():
    model, ids = llama(), tokens(4)
    options = {"do_sample": False, "max_new_tokens": 3, "attention_mask": torch.ones_like(ids)}
    with es.attach(model, {"a": vectors(), "b": vectors(seed=8)}) as steering:
        steering.set_rows(["a", None])
        for call in (lambda: logits(model, ids), lambda: model.generate(ids, **options)):
            with pytest.raises(ValueError, match="set_rows was given 2 sequences.* 4"):
                call()
        beams = model.generate(ids[:2], num_beams=2, do_sample=False, max_new_tokens=3)
        assert len(beams) == 2
        steering.set_rows(None)
        steering.set(positions=es.tokens_at([[1], [2]]))
        for call in (lambda: logits(model, ids), lambda: model.generate(ids, **options)):
            with pytest.raises(ValueError, match="a mask for 2 sequences.* 4"):
                call()


def test_indices_become_a_mask_and_numbers_are_not_mistaken_for_one():
    model, ids = llama(), tokens()
    mask = es.tokens_at([[0, 3], []])
    assert mask.tolist() == [[True, False, False, True], [False] * 4]
    assert torch.equal(es.tokens_at([3, 1]), es.tokens_at([[1, 3]]))
    chosen = torch.zeros(2, 7, dtype=torch.bool)
    chosen[0, [0, 3]] = True
    with hooks_that_choose(model, vectors(), lambda h: chosen):
        want = logits(model, ids)
    with es.attach(model, vectors(), positions=mask) as steering:
        torch.testing.assert_close(logits(model, ids), want)
        for wrong in ([[0, 3]], torch.tensor([[0.0, 0.5]]), [[-1, 1]]):
            with pytest.raises(ValueError, match="nothing but 0 and 1.*tokens_at"):
                steering.set(positions=wrong)
        with pytest.raises(ValueError, match="tokens_at"):
            steering.set(positions=[1, 0, 1])
    for wrong in ([], [[]], [-1], [[2**30]], [[1.5]], [True], ["last"]):
        with pytest.raises(ValueError, match="indices"):
            es.tokens_at(wrong)


def test_a_draft_may_leave_layers_out_and_nothing_else_may():
    model, ids = llama(), tokens(1)
    options = {"do_sample": False, "max_new_tokens": 8, "attention_mask": torch.ones_like(ids)}
    for mode in ("fold", "slot"):
        with es.attach(model, vectors((0, 3)), mode=mode):
            want = model.generate(ids, **options)
            early = model.generate(ids, assistant_early_exit=1, **options)
            assert torch.equal(early, want)
    with es.attach(model, vectors((0, 3)), mode="slot"):
        model.config.num_hidden_layers = 2
        with pytest.raises(RuntimeError, match=r"layers \[3\] carry a vector"):
            logits(model, ids)


def test_continuous_batching_is_steered_everywhere_or_refused():
    model = llama(head_dim=8)
    if not hasattr(model, "generate_batch"):
        pytest.skip("this transformers has no continuous batching")
    for change in ({"positions": "generated"}, {"rows": [0, None]}):
        with es.attach(model, vectors()) as steering:
            if "rows" in change:
                steering.set_rows(change["rows"])
            else:
                steering.set(**change)
            with pytest.raises(ValueError, match="generate_batch.*continuous batching packs"):
                model.generate_batch([[5, 6, 7]])
    assert "generate_batch" not in vars(model)


def test_positions_that_chose_no_token_are_told():
    model, ids = llama(), tokens(1)
    options = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
    with es.attach(model, vectors(), positions="generated") as steering:
        with pytest.warns(es.UnsteeredWarning, match="chose no token in any of 1 forward passes"):
            model.generate(ids, max_new_tokens=1, **options)
        model.generate(ids, max_new_tokens=2, **options)  # one of them is read again
        steering.set(positions=es.tokens_at([30]))
        with pytest.warns(es.UnsteeredWarning, match="4 forward passes while generate wrote 4"):
            model.generate(ids, max_new_tokens=4, **options)
        steering.set(strength=0.0)
        model.generate(ids, max_new_tokens=4, **options)  # nothing was to be steered
