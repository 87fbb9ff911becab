"""What the benchmarks of injection share: models, vectors, the tools on a live model.

Nothing here imports expertsteer until one of its tools is asked for, because the peers run this
file in environments of their own.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

DEPTH, PROMPT, VOCABULARY = 16, 16, 512
WIDTHS, BATCHES = (256, 1024), (1, 32)
LAYERS = {"0": (), "1": (8,), "all 16": tuple(range(DEPTH))}
# New tokens of one whole decode: fewer where a step is slow, so that there are rounds to pair.
NEW_TOKENS = {(256, 1): 64, (256, 32): 16, (1024, 1): 16, (1024, 32): 8}
OWN_TOOLS = ("unsteered", "python hook", "fold", "slot")
BIAS = "bias by hand"
AGAIN = "unsteered, again"  # other modules on the same weights: what is noise
TOLERANCE = 1e-4  # of the largest logit, between tools that add in another order


def llama(width: int, depth: int = DEPTH) -> LlamaForCausalLM:
    """A Llama of random weights that never ends a text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        initializer_range=2 / width**0.5,  # wide enough that the texts vary
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.pad_token_id = 0
    return model


def twin(model: nn.Module) -> nn.Module:
    """Other modules over the same memory: every tool has its own, and no cache favours one."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


class Bare(nn.Module):
    """A layer that does nothing, so that what is put around a layer is all there is to time."""

    def forward(self, hidden_states: Tensor, *unused, **named) -> Tensor:
        return hidden_states


def hollow(width: int) -> LlamaForCausalLM:
    """The same model with layers that do nothing."""
    model = llama(width, depth=1)
    model.config.num_hidden_layers = DEPTH
    model.model.layers = nn.ModuleList(Bare() for _ in range(DEPTH))
    return model


def displacements(width: int, layers: tuple[int, ...], seed: int = 1) -> dict[int, Tensor]:
    """What is added at each layer, ``{layer: [width]}``."""
    generator = torch.Generator().manual_seed(seed)
    return {i: 0.5 * torch.randn(width, generator=generator) for i in layers}


def prompt(batch: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(2))


@contextmanager
def hooks(model: nn.Module, deltas: dict[int, Tensor], in_place: bool = False):
    """What people write by hand: a Python forward hook per layer."""

    def hook(delta):
        def add(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.add_(delta) if in_place else hidden + delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    handles = [
        model.model.layers[i].register_forward_hook(hook(delta)) for i, delta in deltas.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def biases(model: nn.Module, deltas: dict[int, Tensor]):
    """Linears with a bias of torch's own, and nothing else: what folding cannot cost less than."""
    linears = {i: model.model.layers[i].mlp.down_proj for i in deltas}
    with torch.inference_mode(False):  # parameters like those of the model
        for i, linear in linears.items():
            linear.bias = nn.Parameter(deltas[i].clone())
    try:
        yield
    finally:
        for linear in linears.values():
            linear.bias = None


def attached(model: nn.Module, deltas: dict[int, Tensor], mode: str, **options):
    """expertsteer. No layers at all: attached to every one, at strength 0."""
    import expertsteer as es

    if not deltas:
        options["strength"] = 0.0
        deltas = displacements(model.config.hidden_size, LAYERS["all 16"])
    return es.attach(model, es.SteeringVectors(deltas), mode=mode, **options)


def steered(tool: str, model: nn.Module, deltas: dict[int, Tensor]):
    """A context in which ``model`` is steered by one of `OWN_TOOLS`, or `BIAS`."""
    if tool == "unsteered":
        return nullcontext()
    if tool == "python hook":
        return hooks(model, deltas)
    if tool == BIAS:
        return biases(model, deltas)
    return attached(model, deltas, tool)


def cache_name(model: nn.Module) -> str:
    """What this release of transformers calls a model's cache."""
    names = inspect.signature(type(getattr(model, "_orig_mod", model)).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def eager_step(model: nn.Module) -> Callable[..., Tensor]:
    """``(ids, cache) -> logits``."""

    def step(ids: Tensor, cache, **more) -> Tensor:
        return model(ids, **{cache_name(model): cache}, **more).logits

    return step


def compiled_step(model: nn.Module, backend: str = "inductor") -> Callable[..., Tensor]:
    """`eager_step` compiled, as a function of its own.

    The compiler keeps what it made for a function in one list and checks the conditions of each
    until some hold; with a function shared by several tools, one would pay for the others.
    """
    step = eager_step(model)
    own = FunctionType(step.__code__.replace(), step.__globals__, None, None, step.__closure__)
    return torch.compile(own, backend=backend, fullgraph=True)


def settings(ids: Tensor, new_tokens: int) -> dict:
    """Of a greedy ``generate`` that makes exactly so many tokens."""
    mask = torch.ones_like(ids)
    return {"attention_mask": mask, "max_new_tokens": new_tokens, "do_sample": False}


def decode(model: nn.Module, ids: Tensor, new_tokens: int, **more):
    """What greedy ``generate`` gives, ``[batch, prompt + new]``."""
    with torch.inference_mode():
        return model.generate(ids, **settings(ids, new_tokens), **more)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected entry."""
    return float((found - expected).abs().max() / expected.abs().max())


class Steered(NamedTuple):
    """What a tool must give: nearly what a plain hook gives, and something else than ``unsteered``
    where that is known. Without ``hooked``, at strength 0, the unsteered result to the bit."""

    hooked: Tensor | None
    unsteered: Tensor | None = None


def off(found: Tensor, expected: Steered) -> float:
    """`difference` from the hook's result; infinite where steering changes nothing it should, or
    anything that it should not."""
    hooked, unsteered = expected
    if hooked is None:
        return 0.0 if torch.equal(found, unsteered) else math.inf
    if unsteered is not None and difference(found, unsteered) <= 0.01:
        return math.inf
    return difference(found, hooked)


def decoded_off(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Steered]) -> float:
    """`off` of the logits; infinite where the tokens are others."""
    same = torch.equal(found[0], expected[0])
    return off(found[1], expected[1]) if same else math.inf


def decoded(result) -> tuple[Tensor, Tensor]:
    """Tokens and logits of a ``generate`` called with `FULL`."""
    return result.sequences, torch.stack(result.logits)


FULL = {"return_dict_in_generate": True, "output_logits": True}
