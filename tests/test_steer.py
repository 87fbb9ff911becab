"""Steering on live models: what is added, where, and that everything is put back."""

import copy
import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import expertsteer as es
from expertsteer._positions import Passes, token_mask
from expertsteer.models import find_decoder, hidden_size
from families import FAMILIES, build_or_skip

WIDTH, DEPTH = 32, 4


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 60,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param()


def vectors(layers=(1, 2), seed=7, width=WIDTH, **metadata):
    generator = torch.Generator().manual_seed(seed)
    drawn = {i: torch.randn(width, generator=generator) for i in layers}
    return es.SteeringVectors(drawn, {i: 0.5 + i for i in layers}, metadata)


def tokens(batch=2, length=7, seed=3):
    return torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def with_plain_hooks(model, steering_vectors, strength, mask):
    """The definition: a hook that adds where the mask says."""

    def hook(layer):
        delta = strength * steering_vectors.displacement(layer) * mask.unsqueeze(-1)

        def add(module, inputs, output):
            if isinstance(output, tuple):
                return (output[0] + delta, *output[1:])
            return output + delta

        return add

    layers = find_decoder(model).layers
    return [layers[i].register_forward_hook(hook(i)) for i in steering_vectors.layers]


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_it_adds_what_the_definition_says(model, backend):
    ids, v = tokens(), vectors()
    handles = with_plain_hooks(model, v, 0.7, torch.ones(2, 7))
    expected = logits(model, ids)
    for handle in handles:
        handle.remove()
    with es.attach(model, v, strength=0.7, backend=backend):
        torch.testing.assert_close(logits(model, ids), expected)


def test_strength_zero_and_leaving_are_bit_exact(model):
    ids = tokens()
    before, names = logits(model, ids), {n: set(vars(m)) for n, m in model.named_modules()}
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    with es.attach(model, vectors(), strength=0.0) as steering:
        assert torch.equal(logits(model, ids), before)
        steering.set(strength=1.0)
        assert not torch.allclose(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == names
    assert all(torch.equal(weights[n], p) for n, p in model.state_dict().items())


def test_a_body_that_raises_still_restores(model):
    before = logits(model, tokens())
    with pytest.raises(KeyError, match="mine"), es.attach(model, vectors()):
        raise KeyError("mine")
    assert torch.equal(logits(model, tokens()), before)
    es.attach(model, vectors()).detach()  # and it can be attached again


def test_a_forward_replaced_by_others_survives(model):

    layer = find_decoder(model).layers[1]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = layer.forward
    with es.attach(model, vectors()):
        assert layer.forward is not theirs
    assert layer.forward is theirs


def test_detach_twice_is_harmless_and_using_it_afterwards_is_not_silent(model):
    steering = es.attach(model, vectors())
    steering.detach()
    steering.detach()
    assert not steering.attached
    with pytest.raises(RuntimeError, match="detached; attach again"):
        steering.set(strength=1.0)
    with pytest.raises(RuntimeError, match="detached; attach again"), steering:
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0.0, "positions": "nope"},
        {"strength": float("inf")},
        {"strength": 2.0, "prompt_length": -1},
        {"positions": "last", "prompt_length": [1.5]},
        {"strength": 1e38, "vectors": 1e38 * vectors()},
        {"strength": 3.0, "vectors": 0.0 * vectors()},
    ],
    ids=str,
)
def test_a_refused_change_changes_nothing(model, wrong):
    ids = tokens()
    with es.attach(model, vectors(), strength=0.5) as steering:
        before = logits(model, ids)
        with pytest.raises(ValueError):
            steering.set(**wrong)
        assert torch.equal(logits(model, ids), before)
        assert (steering.strength, steering.positions) == (0.5, "all")


def test_a_backend_that_cannot_serve_is_refused_when_attaching(model):
    for backend in ("cuda!", "triton"):
        with pytest.raises(ValueError, match="backend"):
            es.attach(model, vectors(), backend=backend)
    es.attach(model, vectors()).detach()


def test_threads_do_not_mix_their_passes():
    from concurrent.futures import ThreadPoolExecutor

    model = llama()
    inputs = [tokens(2, 3 + i % 5, seed=i) for i in range(40)]
    with es.attach(model, vectors(), strength=0.5, positions="last"):
        alone = [logits(model, ids) for ids in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda ids: logits(model, ids), inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_strength_and_vectors_change_in_place(model):
    ids = tokens()
    with es.attach(model, vectors(), strength=0.3) as steering:
        first = logits(model, ids)
        steering.set(strength=-0.3)
        assert not torch.allclose(logits(model, ids), first)
        steering.set(vectors=-vectors())
        torch.testing.assert_close(logits(model, ids), first)
        with pytest.raises(ValueError, match=r"must steer layers \(1, 2\)"):
            steering.set(vectors=vectors(layers=(0,)))


def test_two_models_are_steered_at_once():
    a, b = llama(0), llama(1)
    ids = tokens()
    alone = []
    for m, v in ((a, vectors(seed=1)), (b, vectors(seed=2))):
        with es.attach(m, v):
            alone.append(logits(m, ids))
    with es.attach(a, vectors(seed=1)), es.attach(b, vectors(seed=2)):
        assert torch.equal(logits(a, ids), alone[0]) and torch.equal(logits(b, ids), alone[1])


def test_a_second_steering_of_one_model_is_refused_and_changes_nothing(model):
    ids = tokens()
    with es.attach(model, vectors()):
        steered = logits(model, ids)
        with pytest.raises(ValueError, match="already steered.*sum"):
            es.attach(model, vectors(seed=8))
        assert torch.equal(logits(model, ids), steered)


def test_the_sum_of_vectors_is_both(model):
    a, b = vectors(layers=(1,), seed=1), vectors(layers=(1, 3), seed=2)
    first = with_plain_hooks(model, a, 1.0, torch.ones(2, 7))
    second = with_plain_hooks(model, b, 1.0, torch.ones(2, 7))
    expected = logits(model, tokens())
    for handle in first + second:
        handle.remove()
    with es.attach(model, a + b):
        torch.testing.assert_close(logits(model, tokens()), expected)


def test_output_hidden_states_show_the_steered_states(model):
    ids, v = tokens(), vectors(layers=(1,))
    with torch.no_grad():
        plain = model(ids, output_hidden_states=True).hidden_states
        with es.attach(model, v):
            steered = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(steered[1], plain[1])
    torch.testing.assert_close(steered[2], plain[2] + v.displacement(1))


def test_gradients_pass_through(model):
    ids = tokens()
    embeds = model.get_input_embeddings()(ids).detach()
    embeds.requires_grad_()
    with es.attach(model, vectors()):
        model(inputs_embeds=embeds).logits.sum().backward()
    assert float(embeds.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_model_s_own_type_is_kept(dtype):
    model = llama().to(dtype)
    with es.attach(model, vectors(), strength=0.1):
        out = logits(model, tokens())
    assert out.dtype == dtype and bool(torch.isfinite(out).all())


POSITIONS = ("all", "prompt", "generated", "last")
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_generation_equals_uncached(model, positions):
    ids = tokens()
    mask = torch.ones_like(ids)
    with es.attach(model, vectors(), strength=0.8, positions=positions):
        runs = [
            model.generate(
                ids,
                attention_mask=mask,
                use_cache=cache,
                output_logits=True,
                return_dict_in_generate=True,
                **GREEDY,
            )
            for cache in (True, False)
        ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    for cached, full in zip(runs[0].logits, runs[1].logits):
        torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_left_padded_batch_equals_its_rows(model, positions):
    rows = [tokens(1, length, seed=length) for length in (3, 7, 5)]
    padded = torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, 7 - row.shape[1] :] = row
    mask = (padded != 0).long()
    with es.attach(model, vectors(), strength=0.8, positions=positions):
        batch = model.generate(padded, attention_mask=mask, **GREEDY)[:, 7:]
        for i, row in enumerate(rows):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **GREEDY)
            assert torch.equal(batch[i], alone[0, row.shape[1] :])


def test_each_position_steers_something_else(model):
    outputs = []
    with es.attach(model, vectors(), strength=0.8) as steering:
        for positions in POSITIONS:
            steering.set(positions=positions)
            out = model.generate(
                tokens(1),
                attention_mask=torch.ones(1, 7, dtype=torch.long),
                output_logits=True,
                return_dict_in_generate=True,
                do_sample=False,
                max_new_tokens=3,
            )
            outputs.append(torch.stack(out.logits))
        steering.set(strength=0.0)
        unsteered = logits(model, tokens(1))[:, -1]
    for i, a in enumerate(outputs):
        assert not any(torch.allclose(a, b) for b in outputs[i + 1 :])
    generated = outputs[POSITIONS.index("generated")]
    torch.testing.assert_close(generated[0], unsteered)  # the first new token comes unsteered


def test_padding_is_never_steered(model):
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens(1, 4)], dim=1)
    mask = (padded != 0).long()
    with torch.no_grad():
        plain = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2]
        with es.attach(model, vectors(layers=(1,))):
            steered = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    assert torch.equal(steered[:, :3], plain[:, :3])
    assert not torch.isclose(steered[:, 3:], plain[:, 3:]).all(dim=-1).any()


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("given", [True, False], ids=["mask given", "mask inferred"])
def test_padding_in_generate_is_never_steered(given, cache):
    model = llama()
    seen = []

    def watch(module, arguments):
        seen.append(arguments[0].clone())

    model.model.layers[2].register_forward_pre_hook(watch)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens(1, 4)], dim=1)
    options = {"cache_implementation": cache} | GREEDY | {"max_new_tokens": 2}
    if given:
        options["attention_mask"] = (padded != 0).long()
    model.generate(padded, **options)
    plain = seen[0]
    with es.attach(model, vectors(layers=(1,))):
        seen.clear()
        model.generate(padded, **options)
    same = (seen[0] == plain).all(dim=-1)
    assert same.tolist() == [[True] * 3 + [False] * 4]


def test_a_prompt_length_places_a_scored_continuation(model):
    ids = tokens(2)
    before = torch.arange(7).expand(2, 7) >= torch.tensor([[3], [5]])
    handles = with_plain_hooks(model, vectors(), 0.6, before.float())
    expected = logits(model, ids)
    for handle in handles:
        handle.remove()
    with es.attach(model, vectors(), strength=0.6, positions="generated") as steering:
        steering.set(prompt_length=torch.tensor([3, 5]))
        torch.testing.assert_close(logits(model, ids), expected)
        mask = torch.ones_like(ids)
        known = model.generate(ids, attention_mask=mask, **GREEDY)
        steering.set(prompt_length=None)
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), known)
        assert not torch.allclose(logits(model, ids), expected)
        steering.set(prompt_length=torch.tensor([3, 5, 7]))
        with pytest.raises(ValueError, match="each of 2 sequences, came 3"):
            logits(model, ids)


def test_last_is_the_last_token_of_every_row_outside_generate():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    chosen = token_mask("last", Passes(), {"attention_mask": mask}, (3, 4), torch.device("cpu"))
    assert chosen.int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_beam_search_and_sampling_run_steered(model):
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    with es.attach(model, vectors(), strength=0.5, positions="generated"):
        beams = [
            model.generate(ids, attention_mask=mask, num_beams=3, use_cache=c, **GREEDY)
            for c in (True, False)
        ]
        assert torch.equal(*beams)
        drawn = []
        for _ in range(2):
            torch.manual_seed(5)
            drawn.append(model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=6))
        assert torch.equal(*drawn)


def test_calling_a_layer_or_reading_no_padding_is_loud(model):

    layer = find_decoder(model).layers[1]
    square = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    with es.attach(model, vectors()):
        with pytest.raises(RuntimeError, match="layer 1 .*outside its decoder's forward"):
            layer(torch.zeros(1, 2, WIDTH))
        with pytest.raises(ValueError, match=r"attention_mask must be \[batch, tokens\]"):
            logits(model, tokens(), attention_mask=square)


def test_a_layer_that_does_not_run_is_loud():
    model = llama()
    with es.attach(model, vectors(layers=(3,))):
        kept = model.model.layers
        model.model.layers = kept[:3]  # an early exit
        with pytest.raises(RuntimeError, match=r"layers \[3\] carry a vector but did not run"):
            logits(model, tokens(), use_cache=False)
        model.model.layers = kept


def test_copies_of_a_live_steered_model_are_refused(model):
    with es.attach(model, vectors()):
        with pytest.raises(ValueError, match="cannot be deep-copied; detach"):
            copy.deepcopy(model)
        with pytest.raises(ValueError, match="cannot be pickled; detach"):
            pickle.dumps(model)
    copy.deepcopy(model)


def test_a_compiled_model_is_refused_with_the_way_out():
    model = llama()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="compiled before attaching"):
        es.attach(compiled, vectors())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (vectors(layers=(9,)),),
            {},
            r"layer 9 is out of range for a model with 4 layers \(0..3\)",
        ),
        ((vectors(width=31),), {}, "width 31, the model's hidden size is 32"),
        ((vectors(target={"architecture": "Other"}),), {}, "fitted for a model with architecture"),
        ((vectors(target={"num_layers": 12}),), {}, "num_layers 12, this one has 4"),
        (({1: torch.zeros(WIDTH)},), {}, "vectors must be SteeringVectors, came dict"),
        ((vectors(),), {"strength": float("nan")}, "strength must be a finite number"),
        ((vectors(),), {"positions": "every"}, "positions must be one of"),
        ((vectors(),), {"decoder_layers": "model.blocks"}, "model.blocks"),
    ],
)
def test_bad_input_leaves_the_model_unsteered(arguments, options, message):
    model = llama()
    before = logits(model, tokens())
    with pytest.raises(ValueError, match=message):
        es.attach(model, *arguments, **options)
    assert torch.equal(logits(model, tokens()), before)


def test_vectors_of_another_model_are_steered_when_asked():
    with es.attach(llama(), vectors(target={"num_layers": 12}), check_model=False) as steering:
        assert steering.attached


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_steered_by_definition(name):
    model = build_or_skip(name)
    v = vectors(layers=(0, 1), width=hidden_size(model))
    handles = with_plain_hooks(model, v, 0.4, torch.ones(2, 7))
    expected = logits(model, tokens())
    for handle in handles:
        handle.remove()
    with es.attach(model, v, strength=0.4):
        torch.testing.assert_close(logits(model, tokens()), expected)


def next_token_logits(model, use_cache):
    out = model.generate(
        tokens(),
        attention_mask=torch.ones(2, 7, dtype=torch.long),
        use_cache=use_cache,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        do_sample=False,
        max_new_tokens=5,
    )
    return torch.stack(out.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_generates_alike_with_and_without_a_cache(name):
    model = build_or_skip(name)
    unsteered = [next_token_logits(model, cache) for cache in (True, False)]
    if not torch.allclose(*unsteered, rtol=1e-3, atol=1e-4):
        pytest.skip(f"{name}: its own cache changes its unsteered logits in this transformers")
    with es.attach(model, vectors(layers=(0, 1), width=hidden_size(model)), strength=0.4) as s:
        for positions in POSITIONS:
            s.set(positions=positions)
            cached, full = (next_token_logits(model, cache) for cache in (True, False))
            assert not torch.allclose(cached, unsteered[0])
            torch.testing.assert_close(cached, full, rtol=1e-3, atol=1e-4)
