"""Where tokens stand in models that count otherwise: adapters, linear attention, parts, wholes."""

import pytest
import torch
import transformers

import expertsteer as es
from helpers.families import FAMILIES, Family, build_or_skip
from helpers.steered_models import (
    CHOICES,
    cache_name,
    hooks_that_choose,
    llama,
    logits,
    passes_of_one,
    steps,
    tokens,
    vectors,
)

pytestmark = pytest.mark.transformers


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
