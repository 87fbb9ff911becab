"""Which tokens of a forward pass are steered.

Positions count in the padded frame of the sequence: token j of a pass that continues a cache of
length ``offset`` stands at ``offset + j``, whether or not a cache is used. That is what makes
cached and uncached generation agree. Virtual tokens that stand before the caller's own (soft
prompts) have negative places in masks, indices and functions, and belong to the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .given_positions import Positions, require_copies
from .prompt import Placed, Prompt


class Outer(NamedTuple):
    """What the whole model was called with, where that differs from what its decoder gets.

    Attributes:
        mask: its attention mask; tokens: how many it was given; cached: whether a cache was.
    """

    mask: Any
    tokens: int | None
    cached: bool


def token_mask(
    positions: Positions,
    prompt: Prompt,
    inputs: Mapping[str, Any],
    shape: tuple[int, int],
    device: torch.device,
    prompt_length: int | Tensor | None = None,
    *,
    outer: Outer | None = None,
    alone: bool = False,
) -> Tensor | bool:
    """The tokens to steer, ``[batch, tokens]`` bool, or ``True`` for every one, ``False`` for none.

    Args:
        positions: ``"all"``, ``"prompt"``, ``"generated"`` or ``"last"``, a mask, or a function
            of ``(places, inputs)``; padding never counts.
        prompt: of the running ``generate``.
        inputs: the decoder's arguments by name.
        shape: batch and number of tokens of this pass.
        prompt_length: outside ``generate``, which knows its own: int, or ``[batch]``.
        outer: what the whole model was called with, where that is known.
        alone: see `Prompt.place`.
    """
    given = inputs.get("attention_mask")
    if prompt.length is None and outer is not None and not _is_rows(given):
        given = outer.mask
    everywhere = isinstance(positions, str) and positions == "all"
    strict = not everywhere or _known_padding(given, prompt)
    placed = prompt.place(
        inputs, shape[1], outer_tokens=outer and outer.tokens, alone=alone, strict=strict
    )
    if prompt.length is None and outer is not None:
        placed = _within_outer(placed, outer, shape[1])
    chosen = _chosen(positions, prompt, inputs, given, shape, device, prompt_length, placed)
    if isinstance(chosen, Tensor) and chosen.device.type == "cpu" and not bool(chosen.any()):
        return False
    return chosen


def _within_outer(placed: Placed, outer: Outer, tokens: int) -> Placed:
    """A call without a cache begins a text, whatever stands in the cache of its decoder."""
    if outer.cached or outer.tokens is None or isinstance(placed.offset, Tensor):
        return placed
    end = placed.offset + tokens
    return Placed(placed.offset, end, end - outer.tokens) if end > outer.tokens else placed


def _chosen(
    positions: Positions,
    prompt: Prompt,
    inputs: Mapping[str, Any],
    given: Any,
    shape: tuple[int, int],
    device: torch.device,
    prompt_length: int | Tensor | None,
    placed: Placed,
) -> Tensor | bool:
    offset, known, virtual = placed
    tokens = shape[1]
    if prompt.length is None and prompt_length is not None:
        _require_one_text(inputs, _not_padding(given, prompt, shape, placed, device))
        known = prompt_length + virtual
    in_answer = prompt.length is not None and type(offset) is int and offset >= known
    if in_answer and isinstance(positions, str):  # nearly every pass; it has no padding
        return positions != "prompt"
    whole = _whole(positions, known, offset, tokens)
    if whole is False:
        return False
    valid = _not_padding(given, prompt, shape, placed, device)
    if whole:
        return True if valid is None else valid
    place = torch.arange(tokens, device=device) + offset  # [tokens]
    if not isinstance(positions, str):
        if isinstance(positions, Tensor):
            chosen = _of_mask(positions, place - virtual, prompt, shape)
        else:
            chosen = of_function(positions, place - virtual, inputs, shape)
    elif known is None:
        chosen = _outside_generate(positions, valid, place, offset, shape, inputs)
    else:
        chosen = _around_prompt(positions, known, place, shape[0])
    chosen = chosen.expand(shape)
    return chosen if valid is None else chosen & valid.to(device)


def _is_rows(mask: Any) -> bool:
    """Whether it is a mask ``[batch, tokens]``."""
    return isinstance(mask, Tensor) and mask.ndim == 2


def _known_padding(mask: Any, prompt: Prompt) -> bool:
    mask = mask if _is_rows(mask) else prompt.mask
    return _is_rows(mask) and mask.device.type == "cpu" and not bool(mask.all())


def _require_one_text(inputs: Mapping[str, Any], valid: Tensor | None) -> None:
    """One prompt length cannot serve several texts in a row."""
    ends = _text_ends(inputs, valid)
    if ends is not None and bool(ends[:, :-1].any()):
        raise ValueError(
            "prompt_length was set, and position_ids start again within a row: several texts are "
            "packed in it, with a prompt each; give positions as a mask, or one text per row"
        )


def _text_ends(inputs: Mapping[str, Any], valid: Tensor | None) -> Tensor | None:
    """The last tokens of texts packed in rows, ``[batch or 1, tokens]``, told by their places."""
    places = inputs.get("position_ids")
    if valid is not None or not _is_rows(places) or places.shape[1] < 2:
        return None
    ends = torch.ones_like(places, dtype=torch.bool)
    ends[:, :-1] = places[:, 1:] != places[:, :-1] + 1
    return ends


def _whole(
    positions: Positions, known: int | Tensor | None, offset: int | Tensor, tokens: int
) -> bool | None:
    """Whether all tokens of the pass are chosen, or none, where numbers at hand tell that."""
    if not isinstance(positions, str):
        return None
    if positions == "all":
        return True
    if isinstance(offset, Tensor) or isinstance(known, Tensor):
        return None
    if known is None:
        if positions == "last":  # of one token: that one, unless it is padding
            return True if tokens == 1 else None
        return (offset > 0) == (positions == "generated")
    first = known - 1 if positions == "last" else known
    if offset >= first:
        return positions != "prompt"
    return positions == "prompt" if offset + tokens <= first else None


def _around_prompt(positions: str, known: int | Tensor, place: Tensor, batch: int) -> Tensor:
    if isinstance(known, Tensor):
        if known.numel() != batch:
            raise ValueError(
                f"prompt_length must hold one length for each of {batch} sequences, came "
                f"{known.numel()}"
            )
        known = known.to(place.device).view(-1, 1)
    first = known - 1 if positions == "last" else known
    return place < first if positions == "prompt" else place >= first


def _of_mask(mask: Tensor, place: Tensor, prompt: Prompt, shape: tuple) -> Tensor:
    """An explicit mask at the places of this pass; tokens beyond its ends are left alone."""
    batch = shape[0]
    require_copies("positions are a mask for", len(mask), batch, prompt.batch)
    mask = mask.to(place.device).repeat_interleave(1 if len(mask) == 1 else batch // len(mask), 0)
    inside = (place >= 0) & (place < mask.shape[1])
    return mask[:, place.clamp(min=0, max=mask.shape[1] - 1)] & inside


def of_function(function: Callable, place: Tensor, inputs: Mapping, shape: tuple) -> Tensor:
    chosen = function(place, inputs)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        raise ValueError(
            "positions must return a bool tensor [tokens] or [batch, tokens], came "
            f"{chosen.dtype if isinstance(chosen, Tensor) else type(chosen).__name__}"
        )
    if tuple(chosen.shape) not in {shape, shape[1:], (1, shape[1])}:
        raise ValueError(
            f"positions must return a bool tensor {shape[1:]} or {shape}, came "
            f"{tuple(chosen.shape)}"
        )
    return chosen.to(place.device)


def _outside_generate(positions, valid, place, offset, shape, inputs) -> Tensor:
    """A plain forward call: what continues a cache is generated, what starts one is the prompt."""
    if positions == "last":
        ends = _text_ends(inputs, valid)
        if ends is not None:
            return ends.to(place.device)
        if valid is None:
            return place == place[-1]
        last = (valid.long() * torch.arange(1, shape[1] + 1, device=valid.device)).amax(dim=1)
        return (place - offset + 1).unsqueeze(0) == last.unsqueeze(1).to(place.device)
    continues = torch.as_tensor(offset, device=place.device) > 0
    return (continues == (positions == "generated")).expand(place.shape)


def _not_padding(
    mask: Any, prompt: Prompt, shape: tuple[int, int], placed: Placed, device: torch.device
) -> Tensor | None:
    """``[batch, tokens]`` bool from the attention mask, ``None`` where nothing is padding."""
    batch, tokens = shape
    offset = placed.offset
    if mask is not None and not _is_rows(mask):
        # generate expands the mask it was given (static caches); outside it there is no original.
        if prompt.length is None:
            raise ValueError(
                "attention_mask must be [batch, tokens] on a steered model, since padding is read "
                f"from it; came {type(mask).__name__} "
                f"{tuple(mask.shape) if isinstance(mask, Tensor) else ''}"
            )
        mask = prompt.mask
        if mask is None:
            return None
        mask = mask.repeat_interleave(batch // mask.shape[0], dim=0)
        if placed.virtual > 0:
            mask = torch.cat([mask.new_ones(batch, placed.virtual), mask], dim=1)
        if isinstance(offset, int):
            generated = mask.new_ones(batch, max(0, offset + tokens - mask.shape[1]))
            mask = torch.cat([mask, generated], dim=1)
    if mask is None:
        return None
    if isinstance(offset, Tensor) and mask.shape[1] > tokens:
        return valid_at(mask, torch.arange(tokens, device=device) + offset)
    if mask.shape[1] < tokens:  # the outer model's, to which virtual tokens were added
        mask = torch.cat([mask.new_ones(mask.shape[0], tokens - mask.shape[1]), mask], dim=1)
    covers_past = mask.shape[1] > tokens and mask.shape[1] >= offset + tokens
    valid = mask[:, offset : offset + tokens] if covers_past else mask[:, -tokens:]
    valid = valid.bool()
    # Not on a device: looking at the answer would wait for it.
    return None if valid.device.type == "cpu" and bool(valid.all()) else valid


def valid_at(mask: Tensor, place: Tensor) -> Tensor:
    """Entries of ``mask [batch, length]`` at places ``[tokens]``, true beyond its end."""
    return mask.bool()[:, place.clamp(max=mask.shape[1] - 1)] | (place >= mask.shape[1])
