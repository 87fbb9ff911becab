"""Where tokens stand: whatever a cache is called, wherever a prompt begins, whoever is asked."""

import inspect

import pytest
import torch
import transformers
from transformers import DynamicCache

import expertsteer as es
from helpers.families import FAMILIES, Family, build_or_skip
from helpers.steered_models import (
    cache_name,
    hooks_that_choose,
    llama,
    logits,
    longer_passes,
    passes_of_one,
    steps,
    tokens,
    vectors,
)

pytestmark = pytest.mark.transformers

CHOICES = {"generated": passes_of_one, "prompt": longer_passes}


def renamed(model, hide):
    """Hand the cache to the decoder as ``memory``, as itself or in a box."""
    decoder, known = model.model, cache_name(model)

    class Box:
        def __init__(self, content):
            self.content = content

    def rename(module, args, kwargs):
        cache = kwargs.pop(known, None)
        return args, kwargs | {"memory": Box(cache) if hide else cache}

    def forward(memory=None, original=decoder.forward, **kwargs):
        return original(**kwargs | {known: memory.content if hide else memory})

    decoder.forward = forward
    decoder.register_forward_pre_hook(rename, with_kwargs=True)
    return model


@pytest.mark.parametrize("positions", CHOICES)
def test_a_cache_is_known_under_any_name(positions):
    model, ids = renamed(llama(), hide=False), tokens()
    with hooks_that_choose(model, vectors(), CHOICES[positions]):
        want = steps(model, ids)
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(steps(model, ids), want)


@pytest.mark.parametrize("positions", CHOICES)
def test_a_cache_that_cannot_be_read_steers_no_wrong_token(positions):
    model, ids = renamed(llama(), hide=True), tokens()
    with hooks_that_choose(model, vectors(), CHOICES[positions]):
        want = steps(model, ids)
    with es.attach(model, vectors(), positions=positions) as steering:
        if "cache_position" in inspect.signature(type(model).forward).parameters:
            torch.testing.assert_close(steps(model, ids), want)  # old releases hand places on
        else:
            told = f"memory.*transformers {transformers.__version__} is installed"
            with pytest.raises(RuntimeError, match=told):
                steps(model, ids)
        steering.set(positions="all")  # no place is needed
        with hooks_that_choose(model, vectors(), lambda h: torch.ones(h.shape[:2])):
            twice = steps(model, ids)
        steering.set(strength=2.0)
        torch.testing.assert_close(steps(model, ids), twice, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", CHOICES)
def test_a_chat_goes_on_with_its_cache_and_the_new_tokens_alone(positions):
    model, ids = llama(), tokens(1, 13)
    release = tuple(map(int, transformers.__version__.split(".")[:2]))
    if release < (5, 0):
        pytest.skip("before transformers 5 generate needs the whole text beside its cache")

    def turn(given):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :9], **{cache_name(model): cache})
        more = {"attention_mask": torch.ones_like(ids), cache_name(model): cache}
        return steps(model, given, **more)

    for given in (ids, ids[:, 9:]):
        with hooks_that_choose(model, vectors(), CHOICES[positions]):
            want = turn(given)
        with es.attach(model, vectors(), positions=positions):
            torch.testing.assert_close(turn(given), want)


@pytest.mark.parametrize("positions", CHOICES)
@pytest.mark.parametrize("negative", [None, 3, 14])
@pytest.mark.parametrize("use_cache", [True, False])
def test_both_branches_of_guidance_have_prompts_of_their_own(positions, negative, use_cache):
    model, ids = llama(), tokens(1)
    options = {"guidance_scale": 2.0, "use_cache": use_cache, "output_scores": True}
    if negative:
        options["negative_prompt_ids"] = tokens(1, negative, seed=9)
    passes, begins = [0], {}

    def choose(hidden):
        passes[0] += 1
        branch = (passes[0] - 1) // 2 % 2  # two steered layers; the text's branch goes first
        place = torch.arange(hidden.shape[1])
        begins.setdefault(branch, hidden.shape[1])
        prompt = place < begins[branch] if not use_cache else (place >= 0) & (passes[0] <= 4)
        return (prompt if positions == "prompt" else ~prompt).expand(hidden.shape[:2])

    def run():
        return torch.stack(
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                return_dict_in_generate=True,
                **options,
            ).scores
        )

    with hooks_that_choose(model, vectors(), choose):
        want = run()
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", CHOICES)
def test_embeddings_may_be_longer_than_the_ids_beside_them(positions):
    model, ids = llama(), tokens(1)
    embeds = model.get_input_embeddings()(ids).detach()
    more = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(ids)}
    for given in (None, ids[:, -2:]):
        if given is not None:
            more["input_ids"] = given
        try:
            with hooks_that_choose(model, vectors(), CHOICES[positions]):
                want = steps(model, None, **more)
        except (RuntimeError, ValueError) as reason:
            pytest.skip(f"not so unsteered in this transformers: {reason}")
        with es.attach(model, vectors(), positions=positions):
            torch.testing.assert_close(steps(model, None, **more), want)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Position ids are not supported")
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("positions", CHOICES)
def test_virtual_tokens_of_an_adapter_stand_before_the_prompt(kind, positions):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    configs = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    config = configs[kind](
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        token_dim=32,
        num_layers=4,
        num_attention_heads=4,
    )
    base, ids = llama(num_key_value_heads=4), tokens(1)
    model = peft.get_peft_model(base, config).eval()
    lengths = []
    watch = base.model.layers[0].register_forward_hook(
        lambda module, inputs, output: lengths.append(inputs[0].shape[1])
    )
    try:
        steps(model, ids)
    except (AttributeError, TypeError, ValueError, RuntimeError) as reason:
        pytest.skip(f"peft {peft.__version__} does not run with this transformers: {reason}")
    watch.remove()
    if lengths[1:] != [1] * 5:
        pytest.skip(f"peft {peft.__version__} repeats its virtual tokens with this transformers")
    with hooks_that_choose(base, vectors(), CHOICES[positions]):
        want = steps(model, ids)
    with es.attach(model, vectors(), positions=positions, check_model=False):
        torch.testing.assert_close(steps(model, ids), want)
    start = lengths[0] - ids.shape[1]  # of the text in its pass
    with hooks_that_choose(
        base, vectors(), lambda h: (torch.arange(h.shape[1]) == start + 3).expand(h.shape[:2])
    ):
        want = logits(model, ids, attention_mask=torch.ones_like(ids))
    third = es.tokens_at([3])
    with es.attach(model, vectors(), positions=third, check_model=False):
        got = logits(model, ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(got, want)


MINIMAX = Family(
    "minimax",
    "MiniMax",
    "model.layers",
    FAMILIES["llama"].options
    | {
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "block_size": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
)


@pytest.mark.parametrize("layer_types", ["mixed", "linear"])
@pytest.mark.parametrize("positions", [*CHOICES, "last"])
def test_a_first_layer_that_counts_nothing_is_not_believed(monkeypatch, layer_types, positions):
    options = dict(MINIMAX.options)
    if layer_types == "linear":
        options["layer_types"] = ["linear_attention"] * 3
    family = Family("minimax", "MiniMax", "model.layers", options)
    monkeypatch.setitem(FAMILIES, "minimax", family)
    model, ids = build_or_skip("minimax"), tokens(1)
    choose = CHOICES.get(
        positions, lambda h: (torch.arange(h.shape[1]) == h.shape[1] - 1).expand(h.shape[:2])
    )
    try:
        with hooks_that_choose(model, vectors(), choose):
            want = steps(model, ids)
    except (RuntimeError, ValueError, IndexError) as reason:
        pytest.skip(f"not so unsteered in this transformers: {reason}")
    with es.attach(model, vectors(), positions=positions):
        torch.testing.assert_close(steps(model, ids), want)


def test_a_recurrent_model_begins_again_with_an_empty_cache():
    model, ids, other = build_or_skip("mamba"), tokens(1), tokens(1, 5, seed=4)
    name = cache_name(model)

    def decode(text):
        with torch.no_grad():
            output = model(text, use_cache=True)
            found = [output.logits[:, -1]]
            for token in ids[0, :3]:
                more = {name: output[name], "use_cache": True}
                if "cache_position" in type(model).forward.__code__.co_varnames:
                    more["cache_position"] = torch.arange(4)
                output = model(token.view(1, 1), **more)
                found.append(output.logits[:, -1])
        return torch.stack(found)

    with hooks_that_choose(model, vectors(), passes_of_one):
        want = [decode(ids), decode(other)]
    with es.attach(model, vectors(), positions="generated"):
        got = [decode(ids), decode(other)]
    torch.testing.assert_close(got, want)


def test_a_part_of_a_model_sees_that_its_text_grows():
    model, ids = llama(), tokens()
    with hooks_that_choose(
        model, vectors(), lambda h: (torch.arange(h.shape[1]) >= 7).expand(h.shape[:2])
    ):
        want = steps(model, ids, use_cache=False)
    with es.attach(model.model, vectors(), positions="generated", check_model=False):
        torch.testing.assert_close(steps(model, ids, use_cache=False), want)
        again = tokens(seed=5)
        unsteered = logits(model, again)  # another text is a prompt, however long
    torch.testing.assert_close(unsteered, logits(model, again))


def test_the_last_token_of_each_packed_text_is_steered():
    model, ids = llama(), tokens(1, 9)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    ends = torch.tensor([[0, 0, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.bool)
    with hooks_that_choose(model, vectors(), lambda h: ends):
        want = logits(model, ids, position_ids=places)
    with es.attach(model, vectors(), positions="last") as steering:
        torch.testing.assert_close(logits(model, ids, position_ids=places), want)
        steering.set(positions="generated", prompt_length=4)
        with pytest.raises(ValueError, match="several texts are packed"):
            logits(model, ids, position_ids=places)


def test_the_outer_model_may_build_the_masks():
    names = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = FAMILIES["gemma3_text"].options | names
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text |= {"hidden_size": 32, "num_hidden_layers": 3, "layer_types": kinds}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    ids = tokens(2)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    chosen = {
        "all": mask.bool(),
        "last": torch.arange(7).expand(2, 7) == 6,
        "generated": torch.zeros(2, 7).bool(),
    }
    for positions, choice in chosen.items():
        with hooks_that_choose(model, vectors(), lambda h, choice=choice: choice):
            want = logits(model, ids, attention_mask=mask)
        with es.attach(model, vectors(), positions=positions, mode="slot"):
            got = logits(model, ids, attention_mask=mask)
        torch.testing.assert_close(got[mask.bool()], want[mask.bool()])
    for positions, choose in CHOICES.items():

        def of_text(hidden, choose=choose):
            chosen = choose(hidden)
            return chosen & mask.bool() if hidden.shape[1] > 1 else chosen

        with hooks_that_choose(model, vectors(), of_text):
            want = steps(model, ids, attention_mask=mask)
        with es.attach(model, vectors(), positions=positions):
            torch.testing.assert_close(steps(model, ids, attention_mask=mask), want)


def test_what_ran_before_anything_was_steered_is_not_taken_for_a_prompt():
    model, ids = llama(), tokens(1)

    class Later(transformers.LogitsProcessor):
        """Sets a strength while the third token is chosen."""

        def __init__(self, steering):
            self.steering, self.calls = steering, 0

        def __call__(self, ids, scores):
            self.calls += 1
            if self.calls == 3:
                self.steering.set(strength=1.0)
            return scores

    seen = [0]

    def choose(hidden):
        seen[0] += 1
        return passes_of_one(hidden) & (seen[0] > 6)  # of two layers, from the fourth pass on

    with hooks_that_choose(model, vectors(), choose):
        want = steps(model, ids)
    with es.attach(model, vectors(), strength=0.0, positions="generated", mode="slot") as steering:
        got = steps(model, ids, logits_processor=[Later(steering)])
    torch.testing.assert_close(got, want)
