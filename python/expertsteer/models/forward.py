"""Run a model over token ids as it runs for anybody, and leave it as it was.

A model may read more than the text: a soft prompt stands before it in every pass, a learned prefix
in the cache. Passes therefore go through the outermost model, and what comes out of one is
longer than the text by what stands before it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..support.cores import tell_threads
from .caches import cached_tokens, find_cache
from .decoder import (
    DecoderLayers,
    find_decoder,
    first_integer,
    require_decoder_only,
    text_config,
    unwrapped,
)

LOGIT_BYTES = 1 << 29  # of the logits of one pass in single precision, see `fitting_rows`
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def token_embedding(model: nn.Module) -> nn.Module | None:
    """The model's token embedding, ``None`` where it names none."""
    try:
        return unwrapped(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own training flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def run_layers(model: nn.Module, found: DecoderLayers, ids: Tensor, mask: Tensor) -> None:
    """One forward pass through the layers, without cache and, where possible, without the head."""
    _call(_runner(model, found), ids, mask, logits_to_keep=1)


def logits(model: nn.Module, ids: Tensor, mask: Tensor, first: int = 0) -> Tensor:
    """``[B, T - first, V]`` of token ids and mask ``[B, T]``, without a cache.

    In the model's own type, from the token ``first`` on. The head runs only there where the model
    promises that, see `heads_where_asked`; else what it gives is cut.

    Raises:
        ValueError: an encoder-decoder; logits among which those of the text cannot be told.
    """
    require_decoder_only(model)
    if first and heads_where_asked(model):
        wanted = torch.arange(first, ids.shape[1], device=input_device(model))
        scores = _call(model, ids, mask, logits_to_keep=wanted).logits
        if scores.shape[1] == len(wanted):
            return scores
    else:
        scores = _call(model, ids, mask).logits
    return text_logits(model, scores, ids)[:, first:]


def heads_where_asked(model: nn.Module) -> bool:
    """Whether the model computes logits only at the places that it is given.

    transformers' own models do that whose forward names ``logits_to_keep``: an index tensor is
    what all of them read alike (with a number some leave out layers). Not asked are models with
    anything around them that may count on a row per token, compiled ones, to which each length
    would be new, and those on several devices, where the tensor would be on another than the
    states.
    """
    hooked = model._forward_pre_hooks or model._forward_hooks
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    if not _own(model) or hooked or compiled or len(devices) > 1:
        return False
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def fitting_rows(places: int, vocabulary: int | None) -> int:
    """How many sequences have their logits at so many places in 512 MiB, at least one."""
    return max(1, LOGIT_BYTES // (4 * places * vocabulary)) if vocabulary else sys.maxsize


def text_logits(model: nn.Module, scores: Tensor, ids: Tensor) -> Tensor:
    """Of logits that a model gave for ``ids [B, T]`` those at the text, ``[B, T, V]``.

    Raises:
        ValueError: they cannot be told.
    """
    extra = scores.shape[1] - ids.shape[1]
    if extra and extra != before_text(model, ids[:, :1]).shown:
        raise ValueError(
            f"model: {type(model).__name__} gives logits at {scores.shape[1]} places for "
            f"{ids.shape[1]} tokens, and which of them are the text's cannot be told; pass a model "
            "that gives one row of logits per token"
        )
    return scores[:, extra:]


class Before(NamedTuple):
    """What a model reads before a text.

    Attributes:
        shown: positions in the same pass, as soft prompts take; cached: those in a cache that the
            model brings along, as learned prefixes do.
    """

    shown: int = 0
    cached: int = 0


def before_text(
    model: nn.Module, ids: Tensor | None = None, decoder_layers: str | None = None
) -> Before:
    """What stands before every text, as one pass over one token shows it.

    Args:
        ids: the token, ``[B, 1]``; by default one that every vocabulary has, and no pass at all
            for transformers' own models.

    Raises:
        ValueError: no decoder layers found, or a pass that does not end in the token.
    """
    model = unwrapped(model)
    if ids is None and _own(model):
        return Before()
    found = find_decoder(model, decoder_layers)
    ids = torch.zeros(1, 1, dtype=torch.int64, device="cpu") if ids is None else ids
    lengths: list[int] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            lengths.append(hidden.shape[1])

    with torch.no_grad(), evaluating(model), Watched(model, found) as watched:
        handle = found.layers[0].register_forward_hook(keep)
        try:
            run_layers(model, found, ids, torch.ones_like(ids))
        finally:
            handle.remove()
        shown = lengths[0] - 1 if lengths else 0
        watched.require_text_last(ids, shown)
    return Before(shown, watched.cached)


def longest(model: nn.Module, decoder_layers: str | None = None) -> int | None:
    """How many tokens of text the model's configuration has room for, ``None`` for any number."""
    positions = first_integer(text_config(model), _POSITIONS)
    if positions is None:
        return None
    return max(1, positions - sum(before_text(model, decoder_layers=decoder_layers)))


class Watched:
    """Looks at what a decoder is given, while the context lasts.

    Attributes:
        cached: tokens in the cache that came with the last pass.
    """

    def __init__(self, model: nn.Module, found: DecoderLayers):
        self._model, self._decoder = model, found.decoder
        self._embedding = token_embedding(model)
        self._names = tuple(inspect.signature(found.decoder.forward).parameters)
        self._embedded: Any = None
        self.cached = 0

    def __enter__(self) -> Watched:
        self._handle = self._decoder.register_forward_pre_hook(self._look, with_kwargs=True)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._handle.remove()
        self._embedded = None

    def _look(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = dict(zip(self._names, args)) | kwargs
        self._embedded = inputs.get("inputs_embeds")
        self.cached = int(cached_tokens(find_cache(inputs)) or 0)

    def require_text_last(self, ids: Tensor, extra: int) -> None:
        """What the last pass had beyond the text ``ids [B, T]`` must have stood before it.

        Raises:
            ValueError: it does not, or that cannot be seen.
        """
        if extra == 0:
            return
        came = self._embedded[:, extra:] if isinstance(self._embedded, Tensor) else None
        if came is None or not self._are(came, ids):
            raise ValueError(
                f"model: its layers run over {extra} positions more than the "
                f"{ids.shape[1]} tokens they are given, and which of them are the text's "
                "cannot be told; only what stands before the text, as soft prompts do, can be read "
                "past, so pass the model without what adds them"
            )

    def _are(self, embedded: Tensor, ids: Tensor) -> bool:
        if self._embedding is None:
            return False
        expected = self._embedding(ids.to(input_device(self._model)))
        return torch.equal(embedded, expected.to(embedded))


def _own(model: nn.Module) -> bool:
    """Whether the model is one of transformers' own, which read what they are given and no more."""
    return type(model).__module__.startswith("transformers.models.")


def _runner(model: nn.Module, found: DecoderLayers) -> nn.Module:
    """What runs the layers as the model does: the model, or that without its head.

    The vocabulary-wide output would be wasted, and is more than everything else. One of
    transformers' own models for text, with nothing put around it, is its ``base_model`` and a head.
    """
    around = model._forward_pre_hooks or model._forward_hooks or "forward" in vars(model)
    for_text = text_config(model) is getattr(model, "config", None)
    if around or not _own(model) or not for_text:
        return model
    inside = getattr(model, "base_model", model)
    return inside if any(module is found.decoder for module in inside.modules()) else model


def _call(model: nn.Module, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    """One pass without a cache; ``options`` are given where the model names them."""
    accepted = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    device = input_device(model)
    if device.type == "cpu":
        tell_threads()
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    inputs = {name: value for name, value in inputs.items() if takes_all or name in accepted}
    return model(**inputs, **{name: v for name, v in options.items() if name in accepted})


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: to the embedding, or to the first parameter that is not offloaded."""
    embedding = token_embedding(model)
    first = () if embedding is None else embedding.parameters()
    parameters = chain(first, model.parameters())  # asked at every pass, and the first one answers
    return next((p.device for p in parameters if p.device.type != "meta"), torch.device("cpu"))
