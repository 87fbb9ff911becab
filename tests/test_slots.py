"""Beyond one vector everywhere: vectors per sequence, operations, gates, positions."""

import copy
import functools
import gc
import inspect
import weakref

import pytest
import torch

import expertsteer as es
from expertsteer.models import find_decoder
from steering import WIDTH, gpt2, llama, logits, tokens, vectors, with_plain_hooks


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param()


def hooked(model, function, layers=(1, 2)):
    """The definition: ``function(layer, hidden)`` in the place of what each layer gives."""

    def hook(layer):
        def change(module, inputs, output):
            if isinstance(output, tuple):
                return (function(layer, output[0]), *output[1:])
            return function(layer, output)

        return change

    found = find_decoder(model).layers
    return [found[i].register_forward_hook(hook(i)) for i in layers]


def expected(model, function, **inputs):
    handles = hooked(model, function)
    out = logits(model, tokens(4), **inputs)
    for handle in handles:
        handle.remove()
    return out


EXPERTS = {name: vectors(seed=i) for i, name in enumerate("abc")}


def test_each_sequence_of_a_batch_has_its_own_vectors(model):
    rows = ["a", None, ["b", "c"], {"a": 2.0, "c": -1.0}]
    with es.attach(model, EXPERTS, strength=0.5) as steering:
        steering.set_rows(rows)
        batch = logits(model, tokens(4))
        for i, row in enumerate(rows):
            steering.set_rows([row])
            alone = logits(model, tokens(4)[i : i + 1])
            torch.testing.assert_close(batch[i : i + 1], alone)
        steering.set_rows(rows, strengths=[1, 1, 0, 1])
        weaker = logits(model, tokens(4))
        assert not torch.allclose(weaker[2], batch[2]) and torch.equal(weaker[:2], batch[:2])
        steering.set_rows(None)
        together = logits(model, tokens(4))
    with es.attach(model, EXPERTS["a"] + EXPERTS["b"] + EXPERTS["c"], strength=0.5):
        torch.testing.assert_close(logits(model, tokens(4)), together)


def test_an_unsteered_sequence_among_steered_ones_keeps_its_bits(model):
    before = logits(model, tokens(4))
    with es.attach(model, EXPERTS) as steering:
        steering.set_rows([None, "a", "b", "c"])
        assert torch.equal(logits(model, tokens(4))[0], before[0])


def test_vectors_of_a_list_are_named_by_their_place_and_may_steer_other_layers():
    model, ids = llama(), tokens(2)
    a, b = vectors(layers=(1,), seed=1), vectors(layers=(2, 3), seed=2)
    with es.attach(model, [a, b]) as steering:
        steering.set_rows([0, 1])
        batch = logits(model, ids)
    for i, alone in enumerate((a, b)):
        with es.attach(model, alone):
            torch.testing.assert_close(logits(model, ids)[i], batch[i])


def test_every_beam_and_sample_has_the_vectors_of_its_sequence():
    model, ids = llama(), tokens(2)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 4}
    with es.attach(model, EXPERTS, strength=0.8) as steering:
        steering.set_rows(["a", "b"])
        both = model.generate(ids, num_beams=3, **options)
        for i, row in enumerate(["a", "b"]):
            steering.set_rows([row])
            options["attention_mask"] = torch.ones(1, 7, dtype=torch.long)
            alone = model.generate(ids[i : i + 1], num_beams=3, **options)
            assert torch.equal(both[i], alone[0])


def test_many_vectors_in_one_batch():
    model, ids = llama(), tokens(64)
    many = [vectors(seed=i) for i in range(64)]
    with es.attach(model, many, strength=0.5) as steering:
        steering.set_rows(list(range(64)))
        batch = logits(model, ids)
        for i in (0, 17, 63):
            steering.set_rows([i])
            torch.testing.assert_close(logits(model, ids[i : i + 1])[0], batch[i])


@pytest.mark.parametrize(
    ("rows", "strengths", "message"),
    [
        (["a", "z", None, None], None, "no vectors named 'z'; there are"),
        ([], None, "one entry per sequence"),
        ("abc", None, "one entry per sequence"),
        (["a", "b"], [1.0], "one number for each of 2 rows, came 1"),
        (["a", "b"], [1.0, float("nan")], "finite"),
        ([{"a": 1e38}, "b"], [1e38, 1.0], "finite"),
    ],
)
def test_refused_rows_change_nothing(rows, strengths, message):
    model = llama()
    with es.attach(model, EXPERTS) as steering:
        before = logits(model, tokens(4))
        with pytest.raises(ValueError, match=message):
            steering.set_rows(rows, strengths)
        assert torch.equal(logits(model, tokens(4)), before)
        steering.set_rows(["a", "b"])
        with pytest.raises(ValueError, match="given 2 sequences and this forward pass has 4"):
            logits(model, tokens(4))


def along(layer, hidden):
    unit = vectors().vectors[layer] / vectors().vectors[layer].norm()
    return unit, (hidden @ unit).unsqueeze(-1)


def removed(layer, hidden):
    unit, component = along(layer, hidden)
    return hidden - 0.5 * component * unit


def clamped(layer, hidden):
    unit, component = along(layer, hidden)
    return hidden + (0.5 * vectors().displacement(layer).norm() - component) * unit


def rescaled(layer, hidden):
    moved = hidden + 0.5 * vectors().displacement(layer)
    return moved * hidden.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("operation", "definition"),
    [("remove", removed), ("clamp", clamped), ("add_keep_norm", rescaled)],
)
def test_operations_do_what_they_say(model, operation, definition, backend):
    want = expected(model, definition)
    with es.attach(model, vectors(), strength=0.5, operation=operation, backend=backend):
        torch.testing.assert_close(logits(model, tokens(4)), want)


def test_a_clamp_of_strength_zero_takes_the_component_away():
    model = llama()
    with es.attach(model, vectors(), strength=0.0, operation="clamp"):
        clamped_to_zero = logits(model, tokens(4))
    with es.attach(model, vectors(), strength=1.0, operation="remove"):
        torch.testing.assert_close(logits(model, tokens(4)), clamped_to_zero)


def test_a_gate_steers_only_tokens_beyond_its_threshold(model):
    looking = vectors(seed=11)

    def gated(layer, hidden):
        gate = looking.vectors[layer]
        through = (hidden @ gate) / gate.norm() > 0.2 * looking.scales[layer]
        assert bool(through.any()) and not bool(through.all())
        return hidden + through.unsqueeze(-1) * 0.5 * vectors().displacement(layer)

    want = expected(model, gated)
    with es.attach(model, vectors(), strength=0.5, gate=es.Gate(looking, 0.2)):
        torch.testing.assert_close(logits(model, tokens(4)), want)


def test_a_gate_needs_a_direction_at_every_layer():
    with pytest.raises(ValueError, match=r"gate has no vector at the steered layers \[2\]"):
        es.attach(llama(), vectors(), gate=es.Gate(vectors(layers=(1,))))
    with pytest.raises(ValueError, match="gate must be a Gate"):
        es.attach(llama(), vectors(), gate=vectors())
    with pytest.raises(ValueError, match="threshold must be a finite number"):
        es.Gate(vectors(), float("nan"))


def test_an_explicit_mask_places_the_tokens_cached_or_not():
    model, ids = llama(), tokens(2)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    handles = with_plain_hooks(model, vectors(), 0.6, mask[:, :7].float())
    want = logits(model, ids)
    for handle in handles:
        handle.remove()
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6}
    with es.attach(model, vectors(), strength=0.6, positions=mask) as steering:
        torch.testing.assert_close(logits(model, ids), want)
        runs = [model.generate(ids, use_cache=cache, **options) for cache in (True, False)]
        assert torch.equal(*runs)
        steering.set(positions=lambda place, inputs: place < 5)
        early = logits(model, ids)
        steering.set(positions=torch.arange(7).unsqueeze(0) < 5)
        assert torch.equal(logits(model, ids), early)
        for wrong in ([1, 0, 1], torch.ones(7), "every", 3, {}):
            with pytest.raises(ValueError, match="positions must be"):
                steering.set(positions=wrong)
        steering.set(positions=torch.ones(3, 7, dtype=torch.bool))
        with pytest.raises(ValueError, match="positions must be a mask for 1 or 2 sequences"):
            logits(model, ids)
        steering.set(positions=lambda place, inputs: place.float())
        with pytest.raises(ValueError, match="positions must return a bool tensor"):
            logits(model, ids)


def test_auto_goes_over_to_slots_when_a_bias_no_longer_serves():
    model, ids = llama(), tokens(2)
    with es.attach(model, vectors(), strength=0.6) as steering:
        assert steering.mode == "fold"
        folded = logits(model, ids)
        steering.set(positions="last")
        assert steering.mode == "slot"
        last = logits(model, ids)
        steering.set(positions="all")
        torch.testing.assert_close(logits(model, ids), folded)
        assert not torch.allclose(last, folded)
    with es.attach(model, vectors(), mode="fold") as steering:
        for change in ({"positions": "last"},):
            with pytest.raises(ValueError, match='mode="fold" adds the same vectors'):
                steering.set(**change)
        with pytest.raises(ValueError, match='mode="fold" adds the same vectors'):
            steering.set_rows([0, None])
    for options, reason in (
        ({"positions": "last"}, "only positions"),
        ({"operation": "remove"}, "only an ungated addition"),
    ):
        with pytest.raises(ValueError, match=reason):
            es.attach(model, vectors(), mode="fold", **options)
    with pytest.raises(ValueError, match="mode must be one of"):
        es.attach(model, vectors(), mode="bias")
    with pytest.raises(ValueError, match="operation must be one of"):
        es.attach(model, vectors(), operation="subtract")


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
    monkeypatch.setattr("expertsteer._slots.all_finite", lambda hidden: None)
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
                past_key_values=copy.deepcopy(first.past_key_values),
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
    own = type(layer).forward

    def transposed(*args, **kwargs):
        return own(layer, *args, **kwargs).transpose(0, 2).contiguous().transpose(0, 2)

    layer.forward = transposed
    with es.attach(model, vectors()):
        assert (
            tuple(
                find_decoder(model)
                .layers[1]
                .forward.original(
                    torch.randn(2, 7, WIDTH),
                    position_embeddings=model.model.rotary_emb(
                        torch.randn(2, 7, WIDTH), torch.arange(7).unsqueeze(0)
                    ),
                )
                .stride()
            )[-1]
            != 1
        )
        torch.testing.assert_close(logits(model, ids), want)


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
