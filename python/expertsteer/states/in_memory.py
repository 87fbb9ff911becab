"""`capture`: the states of a contrast set, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..contrast.contrast_set import ContrastSet
from ..models.description import describe
from ..support.progress import bar, quietable
from .reader import Reader
from .states import HiddenStates
from .tokens import warn_of_cut


@quietable
def capture(
    model: nn.Module,
    tokenizer: Any,
    contrast: ContrastSet,
    *,
    layers: int | Iterable[int] | None = None,
    position: str | int = "last",
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    progress: bool = True,
) -> HiddenStates:
    """Run a model over a contrast set and keep one state per example and decoder layer.

    A state is the layer's output: the residual stream after the block, before any final norm.
    Chat messages go through the tokenizer's chat template; when the last message is not the
    assistant's, the opening of the assistant's turn is appended. A text that was rendered before
    gets no second beginning of sequence. The model comes back as it was.

    Args:
        model: read as it runs, adapters, soft prompts and prefixes included; what stands before
            the text is never taken for it.
        tokenizer: of this model; of a processor its tokenizer is used.
        layers: decoder-layer indices counted from 0; every layer by default. The result holds
            them in increasing order.
        position: ``"last"``, the last token that is not padding (special tokens count);
            ``"mean"`` over all tokens; or an index, from the end of the text when negative.
        batch_size: examples per forward pass.
        dtype: of the result: ``None`` or ``"model"`` for the model's own, or a floating-point
            type such as ``torch.float32``.
        max_length: cut longer examples to so many tokens, with a warning; never cut by default.
        decoder_layers: dotted path of the list of layers where ``find_decoder`` needs it.
        progress: show a bar over the examples.

    Returns:
        `HiddenStates` on the CPU, ``states [L, N, D]``, ``labels [N]``, ``keys [N]``, in the order
        of the contrast set, whatever the order of the batches.

    Raises:
        ValueError: an argument out of its range, no decoder layers found, an encoder-decoder, no
            tokenizer, messages without a chat template, an example without tokens or longer than
            the model allows, a position outside an example, a NaN or infinite state (with its layer
            and example).
    """
    if not isinstance(contrast, ContrastSet):
        raise ValueError(f"contrast must be a ContrastSet, came {type(contrast).__name__}")
    reader = Reader(
        model, tokenizer, layers, position, batch_size, dtype, max_length, decoder_layers
    )
    tokens, cut = reader.tokens(contrast)
    warn_of_cut(cut, len(contrast), max_length)
    with bar(len(contrast), "capture", progress, "example") as ticking:
        states = reader.states(tokens, on_batch=ticking.update)
    return HiddenStates(
        states=states,
        labels=torch.tensor(contrast.labels, dtype=torch.int64, device="cpu"),
        layers=reader.layers,
        keys=torch.tensor(contrast.keys, dtype=torch.int64, device="cpu"),
        pairs=_pair_numbers(contrast.pairs),
        position=position,
        model=describe(model, decoder_layers) | {"hidden_size": states.shape[2]},
    )


def _pair_numbers(pairs: Iterable[int | None]) -> Tensor | None:
    """Pairs numbered from 0, -1 for examples that stand alone; ``None`` where all do."""
    order: dict[int, int] = {}
    numbers = [-1 if p is None else order.setdefault(p, len(order)) for p in pairs]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu") if order else None
