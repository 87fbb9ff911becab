"""Slots in a live model: training, other wrappers, other devices, what goes wrong, leaving."""

import copy
import functools
import gc
import inspect
import weakref

import pytest
import torch

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.steered_models import WIDTH, cache_name, llama, logits, tokens, vectors

pytestmark = pytest.mark.transformers


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_the_same_with_checkpointing(reentrant):
    """Layers run again in the backward pass, after another pass with other padding."""
    model = llama()
    ids, mask = tokens(2), torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])

    def gradients():
        model.zero_grad()
        losses = [model(ids, attention_mask=m).logits[:, -1].sum() for m in (mask, None)]
        sum(losses).backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    with es.attach(model, vectors(), strength=0.5, positions="last", mode="slot"):
        plain = gradients()
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        for a, b in zip(gradients(), plain):
            torch.testing.assert_close(a, b)
    functions = [vars(m).get("_gradient_checkpointing_func") for m in model.modules()]
    assert any(functions) and not any("expertsteer" in type(f).__module__ for f in functions)


def test_tools_that_look_at_forward_see_the_original(model):
    layer = find_decoder(model).layers[1]
    signature, doc = inspect.signature(layer.forward), layer.forward.__doc__
    with es.attach(model, vectors(), mode="slot"):
        assert inspect.signature(layer.forward) == signature
        assert layer.forward.__doc__ == doc and layer.forward.__name__ == "forward"
        assert inspect.unwrap(layer.forward).__qualname__.endswith("forward")


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("leave", ["ours first", "theirs first"])
def test_accelerate_s_wrapping_of_forward_and_ours_leave_in_any_order(order, leave):
    hooks = pytest.importorskip("accelerate.hooks")
    model, ids = llama(), tokens()
    layer, before = model.model.layers[1], logits(model, ids)
    with es.attach(model, vectors(), mode="slot"):
        expected = logits(model, ids)

    def theirs():
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook(execution_device="cpu"))

    if order == "theirs first":
        theirs()
    steering = es.attach(model, vectors(), mode="slot")
    if order == "ours first":
        theirs()
    torch.testing.assert_close(logits(model, ids), expected)
    if leave == "ours first":
        steering.detach()
        torch.testing.assert_close(logits(model, ids), before)
        hooks.remove_hook_from_module(layer)
    else:
        hooks.remove_hook_from_module(layer)
        steering.detach()
    assert torch.equal(logits(model, ids), before)
    assert inspect.ismethod(layer.forward) and not hasattr(layer, "_hf_hook")


def test_a_wrapper_of_ours_sees_the_original_after_detaching():
    model, ids = llama(), tokens()
    layer, before = model.model.layers[1], logits(model, ids)
    steering = es.attach(model, vectors(), mode="slot")
    slot = layer.forward
    layer.forward = functools.wraps(slot)(lambda *args, **kwargs: slot(*args, **kwargs))
    assert not torch.allclose(logits(model, ids), before)
    steering.detach()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_strength_beyond_the_type_is_told_with_the_layer(mode):
    model, ids = llama().to(torch.float16), tokens()
    one = torch.linspace(-1, 1, WIDTH)
    with es.attach(model, es.SteeringVectors({1: one, 2: one}), mode=mode) as steering:
        before = logits(model, ids)
        if mode == "fold":  # the biases themselves would not be finite
            with pytest.raises(ValueError, match=r"layer \d: the bias would not be finite"):
                steering.set(strength=1e5)
            assert steering.strength == 1.0 and torch.equal(logits(model, ids), before)
        steering.set(strength=5e4)  # twice that is beyond the type
        message = "strength 50000 makes the states not finite from layer 2 on.* at layer 1, adds"
        with pytest.raises(RuntimeError, match=message):
            logits(model, ids)
        steering.set(strength=1.0)
        assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_what_a_device_does_not_tell_at_once_is_told_later(mode, monkeypatch):
    """As on a GPU, where looking at every pass would wait for it."""
    monkeypatch.setattr("expertsteer.steering.decoder_slot.all_finite", lambda hidden: None)
    model, ids = llama().to(torch.float16), tokens()
    one = torch.linspace(-1, 1, WIDTH)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 3}
    with es.attach(model, es.SteeringVectors({1: one, 2: one}), mode=mode) as steering:
        model.generate(ids, **options)
        steering.set(strength=5e4)
        with pytest.raises(RuntimeError, match="not finite at strength 50000.*layer 1, adds"):
            model.generate(ids, **options)
        logits(model, ids)
        with pytest.raises(RuntimeError, match="not finite at strength 50000"):
            steering.set(strength=1.0)
        steering.set(strength=1.0)
        model.generate(ids, **options)


def test_a_model_that_is_not_finite_by_itself_is_left_alone():
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    for mode in ("fold", "slot"):
        with es.attach(model, vectors(), mode=mode):
            assert not bool(torch.isfinite(logits(model, tokens())).all())


def test_generation_continues_from_a_cache_and_with_an_assistant():
    model, ids = llama(), tokens(1)
    options = {"do_sample": False, "max_new_tokens": 8}
    mask = torch.ones_like(ids)
    for positions in ("all", "last"):
        with es.attach(model, vectors(), strength=0.8, positions=positions, mode="slot"):
            plain = model.generate(ids, attention_mask=mask, **options)
            assisted = model.generate(
                ids, attention_mask=mask, assistant_model=llama(num_hidden_layers=1), **options
            )
            assert torch.equal(assisted, plain)
            first = model.generate(
                ids, attention_mask=mask, return_dict_in_generate=True, **options
            )
            longer = first.sequences
            more = model.generate(
                longer,
                attention_mask=torch.ones_like(longer),
                **{cache_name(model): copy.deepcopy(first[cache_name(model)])},
                **options,
            )
            again = model.generate(longer, attention_mask=torch.ones_like(longer), **options)
            if positions == "all":  # "last" counts what the new call calls its prompt
                assert torch.equal(more, again)


def test_layers_that_live_elsewhere_are_steered_where_they_run(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, ids = llama(), tokens()
    with es.attach(model, vectors(), positions="last"):
        want = logits(model, ids)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    split = accelerate.dispatch_model(
        llama(), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    for mode in ("auto", "slot"):
        with es.attach(split, vectors(), positions="last", mode=mode):
            torch.testing.assert_close(logits(split, ids), want)


@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_folding_makes_it_permanent(mode, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids = llama(), tokens()
    steering = es.attach(model, vectors(), strength=0.5, mode=mode)
    want = logits(model, ids)
    folded = steering.fold()
    assert not steering.attached
    folded.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(stock, ids), want)


def test_what_is_not_one_vector_everywhere_is_not_folded():
    model, ids = llama(), tokens()
    for options in ({"positions": "last"}, {"operation": "remove"}):
        with es.attach(model, vectors(), **options) as steering:
            before = logits(model, ids)
            with pytest.raises(ValueError, match="cannot be folded into the weights: only"):
                steering.fold()
            assert steering.attached and torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("mode", ["fold", "slot"])
def test_a_dropped_model_is_freed(mode, detached):
    model = llama()
    steering = es.attach(model, vectors(), mode=mode)
    logits(model, tokens())
    gone = [weakref.ref(model), weakref.ref(steering)]
    if detached:
        steering.detach()
    del model, steering
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_states_of_any_layout_are_steered():
    """A layer may give states that are not contiguous."""
    model, ids = llama(), tokens()
    with es.attach(model, vectors(), mode="slot"):
        want = logits(model, ids)
    layer = model.model.layers[1]
    own, strides = type(layer).forward, []

    def transposed(*args, **kwargs):
        output = own(layer, *args, **kwargs)
        whole = isinstance(output, tuple)  # as layers gave it before transformers 5
        states = (output[0] if whole else output).transpose(0, 2).contiguous().transpose(0, 2)
        strides.append(states.stride())
        return (states, *output[1:]) if whole else states

    layer.forward = transposed
    with es.attach(model, vectors()):
        torch.testing.assert_close(logits(model, ids), want)
    assert strides and all(stride[-1] != 1 for stride in strides)


@pytest.mark.parametrize("operation", ["add", "clamp"])
def test_layers_go_on_sharing_rows_when_their_number_changes(operation):
    """A compiled pass checks every tensor it reads, so layers must not have each their own."""
    two = {"a": vectors((1, 2)), "b": vectors((1, 2), seed=8)}
    with es.attach(llama(), two, mode="slot", operation=operation) as steering:
        for rows in (None, ["a", "b", None], ["a"], None):
            steering.set_rows(rows)
            first, second = (slot.buffers for slot in steering.slots.values())
            assert first.rows is second.rows
            # "clamp" aims at the length of each layer's own vector
            assert (first.strengths is second.strengths) == (operation == "add")
