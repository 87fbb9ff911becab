"""One model and its tokenizer, ready to give the states of any number of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..contrast.examples import Example
from ..models.batches import length_batches, padded
from ..models.decoder import DecoderLayers, find_decoder, unwrapped
from ..models.description import embedded, floating, model_dtype
from ..models.encoding import text_tokenizer
from ..models.forward import Watched, evaluating, longest, run_layers
from .blocks import BlockReader
from .tokens import kept_tokens, require_fitting, require_position, token_ids


class Reader:
    """Reads the states of examples, however many at a time; the arguments are those of `capture`.

    Attributes:
        layers: the decoder layers that are read, increasing.
        dtype: of the states.

    Raises:
        ValueError: an argument out of its range, no decoder layers found.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        layers: int | Iterable[int] | None,
        position: str | int,
        batch_size: int,
        dtype: torch.dtype | str | None,
        max_length: int | None,
        decoder_layers: str | None,
    ):
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, came {batch_size!r}")
        require_position(position)
        self._model, self._tokenizer = unwrapped(model), text_tokenizer(tokenizer)
        self._found = find_decoder(self._model, decoder_layers)
        _require_weights(self._found)
        self._decoder_layers = decoder_layers
        self._position, self._batch_size, self._max_length = position, batch_size, max_length
        self.layers = layer_indices(layers, len(self._found))
        self.dtype = floating(dtype, model_dtype(self._model))

    def tokens(self, examples: Sequence[Example], first: int = 0) -> tuple[list[list[int]], int]:
        """Token ids of the examples, and how many were cut.

        ``first`` is the number of the first example, for errors.
        """
        return token_ids(self._tokenizer, examples, self._max_length, first)

    def states(
        self, tokens: Sequence[Sequence[int]], on_batch: Callable[[int], Any], first: int = 0
    ) -> Tensor:
        """``[L, N, D]`` on the CPU, in the order of the examples; the model comes back as it was.

        Args:
            tokens: from `tokens`.
            on_batch: called with the number of examples after each forward pass.
            first: the number of the first example, for errors.

        Raises:
            ValueError: tokens that the model cannot take, a state that is not finite, layers that
                are no decoder layers.
        """
        kept = kept_tokens(list(map(len, tokens)), self._position, first)
        each = None if kept is None else [(token,) for token in kept]
        return self.states_at(tokens, each, on_batch, first)

    def states_at(
        self,
        tokens: Sequence[Sequence[int]],
        kept: Sequence[Sequence[int]] | None,
        on_batch: Callable[[int], Any],
        first: int = 0,
    ) -> Tensor:
        """The same at the token indices ``kept`` of each example, side by side in ``[L, K, D]``.

        ``None`` keeps the mean over the tokens of each.
        """
        require_fitting(tokens, embedded(self._model), self._longest, first)
        lengths = list(map(len, tokens))
        reader = BlockReader(self._found, self.layers, self.dtype, kept, len(tokens), first)
        watched = Watched(self._model, self._found)
        with torch.no_grad(), evaluating(self._model), reader.installed(), watched:
            for batch in length_batches(lengths, self._batch_size):
                ids, mask = padded([tokens[i] for i in batch])
                with reader.reading(batch, mask):
                    run_layers(self._model, self._found, ids, mask)
                    watched.require_text_last(ids, reader.before)
                on_batch(len(batch))
        return reader.states

    @cached_property
    def _longest(self) -> int | None:
        return longest(self._model, self._decoder_layers)


def _require_weights(found: DecoderLayers) -> None:
    """Layers on the meta device compute nothing, unless accelerate fetches their weights."""
    for index, layer in enumerate(found.layers):
        absent = any(p.device.type == "meta" for p in layer.parameters())
        if absent and not any(hasattr(module, "_hf_hook") for module in layer.modules()):
            raise ValueError(
                f"model: the weights of layer {index} were never loaded (they are on the meta "
                "device); load them, or dispatch the model with accelerate"
            )


def layer_indices(layers: int | Iterable[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(depth))
    indices = [layers] if isinstance(layers, Integral) else list(layers)
    # NumPy's integers name layers as well as Python's; booleans do not.
    indices = [
        int(i) if isinstance(i, Integral) and not isinstance(i, bool) else i for i in indices
    ]
    for index in indices:
        if type(index) is not int or not 0 <= index < depth:
            raise ValueError(
                f"layers: {index!r} is out of range for a model with {depth} layers "
                f"(0..{depth - 1})"
            )
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"layers must be different indices, at least one, came {indices}")
    return tuple(sorted(indices))
