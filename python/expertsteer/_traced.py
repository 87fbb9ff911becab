"""Steering as compilers trace it: positions and vectors come from tensors, never from Python.

A number that Python reads becomes part of the graph, and a change of it another compilation. So
everything that `Steering.set` changes is in tensors whose contents change in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._positions import POSITIONS, Positions, _of_function, cached_tokens

_ALL, _PROMPT, _GENERATED, _LAST = range(len(POSITIONS))
_UNKNOWN = -1


class SharedByLayers(NamedTuple):
    """What the decoder's slot hands to those of its layers while a compiler follows them.

    A compiled call checks again every object that was read on the way to its inputs. What each
    layer looked up for itself it would check once per layer; what is handed on here, once.

    Attributes:
        layers: the decoder's layers; tables: ``[L, R, D]``; mask: as operations take it; rows,
            strengths: see `_bank.Buffers`.
        added: what all layers add, ``[L, B, T, D]``, in a pass of one token, whose kernels are so
            small that each further argument of each layer's kernel can be felt; else ``None``.
    """

    layers: Any
    tables: Tensor
    rows: Tensor
    strengths: Tensor
    mask: Tensor
    operation: str
    added: Tensor | None


class Handing:
    """Holds it for the time of one traced pass; a single attribute, as each write costs a call."""

    def __init__(self) -> None:
        self.now: SharedByLayers | None = None


handing = Handing()  # written in graphs only, where every compilation sees its own


class TracedPositions:
    """The token mask of compiled passes.

    Passes of several threads share these tensors: run compiled steered models from one thread, or
    with the same positions and prompt lengths.

    Attributes:
        mode: which of `POSITIONS`, ``[1]``; prompt_length: ``[1, 1]`` or ``[batch, 1]``, -1 where
            unknown; padding: tokens of padding on the left, of the same shapes.
        given: positions that are a mask or a function, which a graph keeps as they are.
        mask: of the pass that is being traced.
    """

    def __init__(self, device: torch.device):
        with torch.inference_mode(False):
            self.mode = torch.zeros(1, dtype=torch.int64, device=device)
            self.prompt_length = torch.full((1, 1), _UNKNOWN, device=device)
            self.padding = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.given: Positions | None = None
        self.mask: Tensor | None = None

    def set_positions(self, positions: Positions) -> None:
        named = isinstance(positions, str)
        self.given = None if named else positions
        if named:
            self.mode.fill_(POSITIONS.index(positions))

    def set_prompt(self, length: int | Tensor | None, mask: Tensor | None = None) -> None:
        """Where prompts end and, by their attention mask, how much padding they begin with."""
        lengths = torch.as_tensor(_UNKNOWN if length is None else length).view(-1, 1)
        self.prompt_length = _written(self.prompt_length, lengths)
        padding = torch.zeros(1, 1, dtype=torch.int64)
        if mask is not None and mask.ndim == 2:
            real = mask.bool()
            padding = (real.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        self.padding = _written(self.padding, padding)

    def token_mask(self, inputs: Mapping[str, Any], tokens: Tensor) -> Tensor:
        """The tokens to steer, ``[batch, tokens]`` bool; see `_positions.token_mask`.

        Args:
            inputs: the decoder's arguments by name.
            tokens: ``input_ids [batch, tokens]`` or ``inputs_embeds [batch, tokens, width]``.
        """
        offset = cached_tokens(inputs)
        if offset is None:
            raise ValueError(
                "a compiled steered model needs a cache that knows its length; run this model "
                "uncompiled, or with use_cache=False"
            )
        # Tracers of shapes cannot give them to torch.arange; counting ones needs no shape.
        first = tokens if inputs.get("input_ids") is not None else tokens[:, :, 0]
        count = torch.ones_like(first, dtype=torch.int64).cumsum(dim=1)  # [batch, tokens] from 1
        place = count - 1 + offset
        valid = self._valid(inputs.get("attention_mask"), place)
        if isinstance(self.given, Tensor):
            given = _for_batch(self.given.to(place.device), place.shape[0]).expand(len(place), -1)
            inside = place < given.shape[1]
            return given.gather(1, place.clamp(max=given.shape[1] - 1)) & inside & valid
        if self.given is not None:
            return _of_function(self.given, place[0], inputs, tuple(place.shape)) & valid
        return (self._by_mode(place, count, valid) | (self.mode == _ALL)) & valid

    def _valid(self, mask: Any, place: Tensor) -> Tensor:
        """What is not padding."""
        valid = place >= _for_batch(self.padding, place.shape[0])
        if isinstance(mask, Tensor) and mask.ndim == 2:
            mask = mask.bool()
            if mask.shape[1] > place.shape[1]:  # it covers the cache too
                beyond = place >= mask.shape[1]
                mask = mask.gather(1, place.clamp(max=mask.shape[1] - 1)) | beyond
            valid = valid & mask
        return valid

    def _by_mode(self, place: Tensor, count: Tensor, valid: Tensor) -> Tensor:
        end = _for_batch(self.prompt_length, place.shape[0])
        first = torch.where(self.mode == _LAST, end - 1, end)
        around = torch.where(self.mode == _PROMPT, place < first, place >= first)
        last = count == (valid * count).amax(dim=1, keepdim=True)
        # Out of generate, what continues a cache is generated and what starts one is the prompt.
        continues = (place - count + 1) > 0
        outside = torch.where(self.mode == _LAST, last, continues == (self.mode == _GENERATED))
        return torch.where(end == _UNKNOWN, outside, around)


def _for_batch(values: Tensor, batch: int) -> Tensor:
    """``[batch or 1, 1]``; beams of one sequence are neighbours."""
    if values.shape[0] in (1, batch):
        return values
    return values.repeat_interleave(batch // values.shape[0], dim=0)


def _written(kept: Tensor, values: Tensor) -> Tensor:
    """The values in the same memory where the shape allows it."""
    if kept.shape == values.shape:
        return kept.copy_(values)
    with torch.inference_mode(False):
        return values.to(kept.device, torch.int64, copy=True)
