"""Read the outputs of decoder layers during a forward pass, and keep only what was asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..models.decoder import DecoderLayers


class BlockReader:
    """Forward hooks that pick states of each example out of each layer's output, at once.

    The output of a layer, ``[B, T, D]``, is never held: the hook keeps ``[K, D]`` of it, on the
    layer's own device until the pass is over, so that no pass waits for a copy.

    Attributes:
        states: ``[L, N, D]`` on the CPU in ``dtype``, the states of an example side by side, in
            the examples' order; complete once every example was read.
        before: positions of the last pass that stood before its texts, as soft prompts do.
    """

    def __init__(
        self,
        decoder: DecoderLayers,
        layers: Sequence[int],
        dtype: torch.dtype,
        kept: Sequence[Sequence[int]] | None,
        examples: int,
        first: int = 0,
    ):
        """Prepare to read ``layers`` of so many examples.

        Args:
            kept: the token indices of each example, or ``None`` for one mean over its tokens.
            first: the number of the first example, for errors.
        """
        self._decoder, self._layers, self._dtype = decoder, layers, dtype
        self._kept, self._first = kept, first
        counts = [1] * examples if kept is None else list(map(len, kept))
        self._starts = list(accumulate(counts, initial=0))  # of each example among the states
        self._found: dict[int, Tensor] = {}
        self.before = 0
        self.states: Tensor | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks on the layers for as long as the context lasts."""
        handles = []
        try:
            for layer in self._layers:
                hook = self._hook(layer)
                handles.append(self._decoder.layers[layer].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def reading(self, batch: Sequence[int], mask: Tensor) -> Iterator[None]:
        """Read one forward pass over the examples ``batch`` with attention mask ``[B, T]``."""
        self._found.clear()
        self._copies: dict[Any, Tensor] = {}
        self._mask = mask
        self._tokens = None
        if self._kept is not None:
            chosen = [(row, token) for row, i in enumerate(batch) for token in self._kept[i]]
            self._tokens = torch.tensor(chosen, dtype=torch.int64, device="cpu").view(-1, 2)
        yield
        self._store(batch)

    def _hook(self, layer: int):
        def keep(module: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            if hasattr(hidden, "full_tensor"):  # a DTensor, spread along tokens or width
                hidden = hidden.full_tensor()
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            if not self._over_the_batch(hidden):
                raise ValueError(
                    f"layer {layer} ({type(module).__name__}) must return hidden states "
                    f"[{self._mask.shape[0]}, {self._mask.shape[1]}, width], came {shape}; name "
                    "another list of layers with decoder_layers=..."
                )
            if layer in self._found:
                raise ValueError(
                    f"layer {layer} ran twice in one forward pass, so it has no single state; "
                    "name another list of layers with decoder_layers=..."
                )
            self._found[layer] = self._select(hidden[:, self.before :])

        return keep

    def _over_the_batch(self, hidden: Any) -> bool:
        """Whether these are states of every token, and what stands before is what it was."""
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            return False
        before = hidden.shape[1] - self._mask.shape[1]
        if not self._found:
            self.before = before
        return hidden.shape[0] == self._mask.shape[0] and before == self.before >= 0

    def _select(self, hidden: Tensor) -> Tensor:
        """From ``[B, T, D]`` to ``[K, D]``, always a copy."""
        if self._tokens is not None:
            rows, tokens = self._beside(hidden, self._tokens).unbind(dim=1)
            return hidden[rows, tokens]
        mask = self._beside(hidden, self._mask)
        # Half precision would lose the sum; padding must not count even where it is not finite.
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        total = wide.masked_fill(mask.unsqueeze(-1) == 0, 0.0).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True)

    def _beside(self, hidden: Tensor, given: Tensor) -> Tensor:
        """What the whole batch shares, copied once to each device that has layers."""
        if hidden.device not in self._copies:
            self._copies[hidden.device] = given.to(hidden.device)
        return self._copies[hidden.device]

    def _store(self, batch: Sequence[int]) -> None:
        silent = [layer for layer in self._layers if layer not in self._found]
        if silent:
            raise ValueError(
                f"layers {silent} did not run in a forward pass of the model, or run compiled, "
                "where hooks are not called; capture the uncompiled model, or name another list "
                "of layers with decoder_layers=..."
            )
        places = [k for i in batch for k in range(self._starts[i], self._starts[i + 1])]
        rows = torch.tensor(places, dtype=torch.int64, device="cpu")
        for place, layer in enumerate(self._layers):
            state = self._found[layer].to("cpu", self._dtype)  # [K, D]
            if self.states is None:
                count = self._starts[-1]
                self.states = state.new_empty(len(self._layers), count, state.shape[1])
            if state.shape[1] != self.states.shape[2]:
                raise ValueError(
                    f"layer {layer} is {state.shape[1]} wide and layer {self._layers[0]} "
                    f"{self.states.shape[2]}; capture layers of one width with layers=[...]"
                )
            self._require_finite(state, layer, places)
            self.states[place, rows] = state
        self._found.clear()

    def _require_finite(self, state: Tensor, layer: int, places: Sequence[int]) -> None:
        finite = torch.isfinite(state)  # [K, D]
        if not finite.all():
            row = int((~finite).any(dim=1).nonzero()[0])
            example = self._first + bisect_right(self._starts, places[row]) - 1
            raise ValueError(
                f"layer {layer} gives example {example} a state that is not finite "
                f"({int((~finite[row]).sum())} of {state.shape[1]} entries are NaN or infinite in "
                f"{state.dtype}); load the model in float32 or bfloat16, or drop the example"
            )
