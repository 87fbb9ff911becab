"""Which tokens of a forward pass are steered.

Positions count in the padded frame of the sequence: token j of a pass that continues a cache of
length ``offset`` stands at ``offset + j``, whether or not a cache is used. That is what makes
cached and uncached generation agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

POSITIONS = ("all", "prompt", "generated", "last")
Positions = str | Tensor | Callable[[Tensor, Mapping[str, Any]], Tensor]

# What the decoders of transformers call the state they carry from one pass to the next.
CACHES = ("past_key_values", "cache_params", "state")


def checked_positions(positions: Any) -> Positions:
    """A name, a mask ``[batch or 1, length]`` made bool, or a callable.

    Raises:
        ValueError: anything else.
    """
    if isinstance(positions, str) and positions in POSITIONS:
        return positions
    if callable(positions) and not isinstance(positions, Tensor):
        return positions
    if isinstance(positions, (list, tuple)) and len(positions):
        positions = torch.as_tensor(positions)
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.numel():
        return positions.detach().to(torch.bool)
    came = tuple(positions.shape) if isinstance(positions, Tensor) else repr(positions)
    raise ValueError(
        f"positions must be one of {POSITIONS}, a mask [batch or 1, length] over the tokens, or "
        f"a function of their places; came {came}"
    )


class Prompt:
    """What one `generate` call (or none) tells of its prompt, and how far its passes came."""

    def __init__(self) -> None:
        self.length: int | None = None
        self.mask: Tensor | None = None
        self.seen = 0

    @classmethod
    def of_generate(cls, model: Any, args: tuple, kwargs: Mapping[str, Any]) -> Prompt:
        """Read the prompt from the arguments of ``model.generate``."""
        prompt = cls()
        candidates = (args[:1] or (None,))[0], *(kwargs.get(n) for n in ("input_ids", "inputs"))
        tokens = next((c for c in candidates if c is not None), None)
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        # Without a prompt generation starts from one beginning-of-sequence token.
        prompt.length = 1 if tokens is None else tokens.shape[1]
        prompt.mask = kwargs.get("attention_mask")
        if prompt.mask is None and tokens is not None and tokens.ndim == 2:
            prompt.mask = _inferred_mask(model, tokens, kwargs)
        return prompt

    def offset(self, inputs: Mapping[str, Any], tokens: int) -> int | Tensor:
        """How many tokens the cache already holds; remembers this pass for the next one."""
        offset = cached_tokens(inputs)
        if offset is None:  # recurrent states do not know their length
            offset = self.seen
        if isinstance(offset, Tensor):
            if offset.device.type != "cpu":
                return offset  # reading it would wait for the device
            offset = int(offset)
        self.seen = offset + tokens
        return offset


def _inferred_mask(model: Any, prompt: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask that ``generate`` makes up itself: padding tokens, unless they also end texts."""
    config = kwargs.get("generation_config") or getattr(model, "generation_config", None)
    pad = kwargs.get("pad_token_id", getattr(config, "pad_token_id", None))
    end = kwargs.get("eos_token_id", getattr(config, "eos_token_id", None))
    ends = torch.as_tensor([] if end is None else end).flatten().tolist()
    if pad is None or pad in ends:
        return None
    return (prompt != pad).long()


def cached_tokens(inputs: Mapping[str, Any]) -> int | Tensor | None:
    """How many tokens the cache among a decoder's arguments holds, ``None`` if it cannot tell."""
    for name in CACHES:
        cache = inputs.get(name)
        if cache is not None:
            break
    else:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            return cache.get_seq_length()
        except ValueError:  # a cache of recurrent layers only
            return None
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):
        return cache[0][0].shape[-2]
    return None


def token_mask(
    positions: Positions,
    prompt: Prompt,
    inputs: Mapping[str, Any],
    shape: tuple[int, int],
    device: torch.device,
    prompt_length: int | Tensor | None = None,
) -> Tensor | bool:
    """The tokens to steer, ``[batch, tokens]`` bool, or ``True`` for every one, ``False`` for none.

    Args:
        positions: ``"all"``, ``"prompt"``, ``"generated"`` or ``"last"``, a mask, or a function
            of ``(places, inputs)``; padding never counts.
        prompt: of the running ``generate``.
        inputs: the decoder's arguments by name.
        shape: batch and number of tokens of this pass.
        prompt_length: outside ``generate``, which knows its own: int, or ``[batch]``.
    """
    tokens = shape[1]
    offset = prompt.offset(inputs, tokens)
    in_answer = prompt.length is not None and type(offset) is int and offset >= prompt.length
    if in_answer and isinstance(positions, str):  # nearly every pass; it has no padding
        return positions != "prompt"
    known = prompt_length if prompt.length is None else prompt.length
    whole = _whole(positions, known, offset, tokens)
    if whole is False:
        return False
    valid = _not_padding(inputs.get("attention_mask"), prompt, shape, offset, device)
    if whole:
        return True if valid is None else valid
    place = torch.arange(tokens, device=device) + offset  # [tokens]
    if not isinstance(positions, str):
        of_given = _of_mask if isinstance(positions, Tensor) else _of_function
        chosen = of_given(positions, place, inputs, shape)
    elif known is None:
        chosen = _outside_generate(positions, valid, place, offset, shape)
    else:
        chosen = _around_prompt(positions, known, place, shape[0])
    chosen = chosen.expand(shape)
    return chosen if valid is None else chosen & valid.to(device)


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


def _of_mask(mask: Tensor, place: Tensor, inputs: Mapping, shape: tuple) -> Tensor:
    """An explicit mask at the places of this pass; tokens beyond its end are left alone."""
    batch = shape[0]
    if len(mask) != 1 and batch % len(mask):
        raise ValueError(
            f"positions must be a mask for 1 or {batch} sequences, came one for {len(mask)}"
        )
    mask = mask.to(place.device).repeat_interleave(1 if len(mask) == 1 else batch // len(mask), 0)
    inside = place < mask.shape[1]
    return mask[:, place.clamp(max=mask.shape[1] - 1)] & inside


def _of_function(function: Callable, place: Tensor, inputs: Mapping, shape: tuple) -> Tensor:
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


def _outside_generate(positions, valid, place, offset, shape) -> Tensor:
    """A plain forward call: what continues a cache is generated, what starts one is the prompt."""
    if positions == "last":
        if valid is None:
            return place == place[-1]
        last = (valid.long() * torch.arange(1, shape[1] + 1, device=valid.device)).amax(dim=1)
        return (place - offset + 1).unsqueeze(0) == last.unsqueeze(1).to(place.device)
    continues = torch.as_tensor(offset, device=place.device) > 0
    return (continues == (positions == "generated")).expand(place.shape)


def _not_padding(
    mask: Any,
    prompt: Prompt,
    shape: tuple[int, int],
    offset: int | Tensor,
    device: torch.device,
) -> Tensor | None:
    """``[batch, tokens]`` bool from the attention mask, ``None`` where nothing is padding."""
    batch, tokens = shape
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
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
        if isinstance(offset, int):
            generated = mask.new_ones(batch, max(0, offset + tokens - mask.shape[1]))
            mask = torch.cat([mask, generated], dim=1)
    if mask is None:
        return None
    if isinstance(offset, Tensor) and mask.shape[1] > tokens:
        return valid_at(mask, torch.arange(tokens, device=device) + offset)
    covers_past = mask.shape[1] > tokens and mask.shape[1] >= offset + tokens
    valid = mask[:, offset : offset + tokens] if covers_past else mask[:, -tokens:]
    valid = valid.bool()
    # Not on a device: looking at the answer would wait for it.
    return None if valid.device.type == "cpu" and bool(valid.all()) else valid


def valid_at(mask: Tensor, place: Tensor) -> Tensor:
    """Entries of ``mask [batch, length]`` at places ``[tokens]``, true beyond its end."""
    return mask.bool()[:, place.clamp(max=mask.shape[1] - 1)] | (place >= mask.shape[1])
