"""Steering as compilers trace it: positions and vectors come from tensors, never from Python.

A number that Python reads becomes part of the graph, and a change of it another compilation. So
everything that `Steering.set` changes is in tensors whose contents change in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.caches import counted_tokens, find_cache
from .given_positions import POSITIONS, Positions, require_copies
from .positions import of_function

_MODE, _PROMPT_LENGTH, _PADDING, _START = range(4)
_UNKNOWN = -1


class SharedByLayers(NamedTuple):
    """What the decoder's slot hands to those of its layers while a compiler follows them.

    A compiled call checks again every object that was read on the way to its inputs. What each
    layer looked up for itself it would check once per layer; what is handed on here, once.

    Attributes:
        layers: those that are steered; function: their forward, ``None`` where they differ.
        tables: ``[L, R, D]``; rows, strengths: see `_bank.Buffers`; mask: as operations take it.
        added: what all layers add, ``[L, B, T, D]``, in a pass of one token, whose kernels are so
            small that each further argument of each layer's kernel can be felt; else ``None``.
    """

    layers: list
    function: Callable | None
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
        state: ``[1 or batch, 4]`` int64: which of `POSITIONS`, the prompt's length (-1 where it
            is unknown), tokens of padding on the left, and how long a cache is where a prompt goes
            into it in one pass (-1 where the prompt's length alone tells which tokens are its).
            One tensor, as a graph checks each.
        given: positions that are a mask or a function, which a graph keeps as they are.
        mask: of the pass that is being traced; outer_mask: attention mask of the whole model.
        batch: that ``generate`` was called with, whose beams and samples are neighbours.
    """

    def __init__(self, device: torch.device):
        with torch.inference_mode(False):
            none = [0, _UNKNOWN, 0, _UNKNOWN]
            self.state = torch.tensor([none], dtype=torch.int64, device=device)
        self.given: Positions | None = None
        self.mask: Tensor | None = None
        self.outer_mask: Any = None
        self.batch: int | None = None

    def set_positions(self, positions: Positions) -> None:
        named = isinstance(positions, str)
        self.given = None if named else positions
        if named:
            self.state[:, _MODE] = POSITIONS.index(positions)

    def set_prompt(
        self, length: int | Tensor | None, mask: Tensor | None = None, start: int = _UNKNOWN
    ) -> None:
        """Where prompts end and, by their attention mask, how much padding they begin with.

        Args:
            start: tokens in the cache before a prompt that goes into it in one pass, else -1.
        """
        lengths = torch.as_tensor(_UNKNOWN if length is None else length, device="cpu").view(-1)
        starts = torch.full_like(lengths[:1], start)
        padding = torch.zeros(1, dtype=torch.int64, device="cpu")
        if mask is not None and mask.ndim == 2:
            padding = (mask.bool().cumsum(dim=1) == 0).sum(dim=1)
        kept = self.state
        columns = torch.broadcast_tensors(
            kept[:1, _MODE], *(x.to(kept) for x in (lengths, padding, starts))
        )
        with torch.inference_mode(False):
            state = torch.stack(columns, dim=1)
        self.state = kept.copy_(state) if kept.shape == state.shape else state

    def token_mask(self, inputs: Mapping[str, Any], tokens: Tensor) -> Tensor:
        """The tokens to steer, ``[batch, tokens]`` bool; see `_positions.token_mask`.

        Args:
            inputs: the decoder's arguments by name.
            tokens: ``input_ids [batch, tokens]`` or ``inputs_embeds [batch, tokens, width]``.
        """
        cache = find_cache(inputs)
        offset = 0 if cache is None else counted_tokens(cache)
        told = inputs.get("cache_position")  # of old releases, whose static caches count wrongly
        if isinstance(told, Tensor) and told.ndim == 1:
            offset = told[:1]
        if offset is None:
            raise ValueError(
                "a compiled steered model needs a cache that knows its length; run this model "
                "uncompiled, or with use_cache=False"
            )
        # Tracers of shapes cannot give them to torch.arange; counting ones needs no shape.
        first = tokens if inputs.get("input_ids") is not None else tokens[:, :, 0]
        count = torch.ones_like(first, dtype=torch.int64).cumsum(dim=1)  # [batch, tokens] from 1
        place = count - 1 + offset
        state = self._for_batch(self.state, place.shape[0])
        mode, end, padding, start = state.split(1, dim=1)
        mask = inputs.get("attention_mask")
        if self.outer_mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            mask = self.outer_mask
        valid = _valid(mask, place, padding)
        if isinstance(self.given, Tensor):
            given = self.given.to(place.device)
            given = self._for_batch(given, place.shape[0]).expand(len(place), -1)
            inside = place < given.shape[1]
            return given.gather(1, place.clamp(max=given.shape[1] - 1)) & inside & valid
        if self.given is not None:
            return of_function(self.given, place[0], inputs, tuple(place.shape)) & valid
        if cache is None and not inputs.get("use_cache"):
            start = torch.full_like(start, _UNKNOWN)
        return _by_mode(mode, end, start, place, count, valid) & valid

    def _for_batch(self, values: Tensor, batch: int) -> Tensor:
        """``[batch or 1, ...]``; beams of one sequence are neighbours."""
        if values.shape[0] in (1, batch):
            return values
        require_copies("positions are given for", values.shape[0], batch, self.batch)
        return values.repeat_interleave(batch // values.shape[0], dim=0)


def _valid(mask: Any, place: Tensor, padding: Tensor) -> Tensor:
    """What is not padding."""
    valid = place >= padding
    if isinstance(mask, Tensor) and mask.ndim == 2:
        mask = mask.bool()
        if mask.shape[1] > place.shape[1]:  # it covers the cache too
            beyond = place >= mask.shape[1]
            mask = mask.gather(1, place.clamp(max=mask.shape[1] - 1)) | beyond
        valid = valid & mask
    return valid


def _by_mode(
    mode: Tensor, end: Tensor, start: Tensor, place: Tensor, count: Tensor, valid: Tensor
) -> Tensor:
    """What the positions by name choose, where ``end`` is the prompt's length."""
    everywhere, prompt, generated, last = range(4)  # of POSITIONS; here no graph checks them
    first = torch.where(mode == last, end - 1, end)
    around = torch.where(mode == prompt, place < first, place >= first)
    at_end = count == (valid * count).amax(dim=1, keepdim=True)
    final = count == count.amax(dim=1, keepdim=True)
    offset = place - count + 1
    # A prompt that goes into its cache in one pass is that pass, however long it is.
    is_prompt = offset <= start
    whole = torch.where(mode == prompt, is_prompt, ~is_prompt | ((mode == last) & final))
    around = torch.where(start == _UNKNOWN, around, whole)
    # Out of generate, what continues a cache is generated and what starts one is the prompt.
    continues = offset > 0
    outside = torch.where(mode == last, at_end, continues == (mode == generated))
    return torch.where(end == _UNKNOWN, outside, around) | (mode == everywhere)
