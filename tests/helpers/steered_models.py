"""Tiny models, vectors and the definition of steering that the steering tests share."""

import contextlib
import inspect

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import expertsteer as es
from expertsteer.models.decoder import find_decoder
from helpers.passes import hidden_of

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


def everything(model):
    """What a module holds, down to the objects and the bits, for every module of a model."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[name, key] = [(k, id(v)) for k, v in value.items()]
            else:
                found[name, key] = set(value) if isinstance(value, set) else id(value)
    return found, {n: t.clone() for n, t in model.state_dict(keep_vars=True).items()}


def assert_as_before(model, before):
    found, weights = everything(model)
    assert found == before[0]
    assert all(torch.equal(weights[n], t) for n, t in before[1].items())


def cache_name(model):
    """What this release of transformers calls the cache among a model's arguments."""
    names = inspect.signature(type(model).forward).parameters
    return next(n for n in ("cache", "past_key_values", "cache_params", "state") if n in names)


@contextlib.contextmanager
def hooks_that_choose(model, steering_vectors, choose, strength=1.0):
    """The definition where tokens are chosen pass by pass: ``choose(hidden)`` gives the mask."""

    def hook(delta):
        def add(module, inputs, output):
            hidden = hidden_of(output)
            moved = hidden + delta * choose(hidden).unsqueeze(-1)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return add

    layers = find_decoder(model).layers
    handles = [
        layers[i].register_forward_hook(hook(strength * steering_vectors.displacement(i)))
        for i in steering_vectors.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def passes_of_one(hidden):
    """Generated tokens, where each comes in a pass of its own behind its prompt's."""
    return torch.full(hidden.shape[:2], hidden.shape[1] == 1)


def longer_passes(hidden):
    """The prompt's tokens, where that is longer than one."""
    return torch.full(hidden.shape[:2], hidden.shape[1] > 1)


CHOICES = {"generated": passes_of_one, "prompt": longer_passes}


def steps(model, ids, **options):
    """Logits of each token that a greedy ``generate`` of six writes, ``[batch, 6, vocabulary]``."""
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    if ids is not None:
        settings |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.stack(model.generate(**settings | options).logits, 1)
