"""Run a model's decoder layers over token ids, and leave the model as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from ._decoder import DecoderLayers


def token_embedding(model: nn.Module) -> nn.Module | None:
    """The model's token embedding, ``None`` where it names none."""
    try:
        return model.get_input_embeddings()
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
    runner = getattr(model, "base_model", model)  # the vocabulary-wide output would be wasted
    if not any(module is found.decoder for module in runner.modules()):
        runner = model
    accepted = inspect.signature(runner.forward).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    device = _input_device(model)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    runner(**{name: value for name, value in inputs.items() if takes_all or name in accepted})


def logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """``[B, T, V]`` of token ids and mask ``[B, T]``, in the model's own type, without a cache."""
    device = _input_device(model)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    accepted = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    return model(**{k: v for k, v in inputs.items() if takes_all or k in accepted}).logits


def _input_device(model: nn.Module) -> torch.device:
    """Where token ids go: to the embedding, or to the first parameter that is not offloaded."""
    embedding = token_embedding(model)
    first = () if embedding is None else embedding.parameters()
    parameters = chain(first, model.parameters())  # asked at every pass, and the first one answers
    return next((p.device for p in parameters if p.device.type != "meta"), torch.device("cpu"))
