"""Which tokens of a forward pass are steered.

Positions count in the padded frame of the sequence: token j of a pass that continues a cache of
length ``offset`` stands at ``offset + j``, whether or not a cache is used. That is what makes
cached and uncached generation agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

POSITIONS = ("all", "prompt", "generated", "last")

# What the decoders of transformers call the state they carry from one pass to the next.
CACHES = ("past_key_values", "cache_params", "state")


class Passes:
    """Follows the forward passes of one `generate` call (or of none) to place their tokens."""

    def __init__(self) -> None:
        self.prompt_length: int | Tensor | None = None
        self.prompt_mask: Tensor | None = None
        self.seen = 0

    @classmethod
    def of_generate(cls, model: Any, args: tuple, kwargs: Mapping[str, Any]) -> Passes:
        """Read the prompt from the arguments of ``model.generate``."""
        passes = cls()
        candidates = (args[:1] or (None,))[0], *(kwargs.get(n) for n in ("input_ids", "inputs"))
        prompt = next((c for c in candidates if c is not None), None)
        if prompt is None:
            prompt = kwargs.get("inputs_embeds")
        # Without a prompt generation starts from one beginning-of-sequence token.
        passes.prompt_length = 1 if prompt is None else prompt.shape[1]
        passes.prompt_mask = kwargs.get("attention_mask")
        if passes.prompt_mask is None and prompt is not None and prompt.ndim == 2:
            passes.prompt_mask = _inferred_mask(model, prompt, kwargs)
        return passes

    def offset(self, inputs: Mapping[str, Any], tokens: int) -> int:
        """How many tokens the cache already holds; remembers this pass for the next one."""
        cache = next((inputs[n] for n in CACHES if inputs.get(n) is not None), None)
        offset = 0 if cache is None else _cached_tokens(cache)
        if offset is None:  # recurrent states do not know their length
            offset = self.seen
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


def _cached_tokens(cache: Any) -> int | None:
    """How many tokens a cache of transformers holds, ``None`` where it cannot tell."""
    if hasattr(cache, "get_seq_length"):
        try:
            return int(cache.get_seq_length())
        except ValueError:  # a cache of recurrent layers only
            return None
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):
        return cache[0][0].shape[-2]
    return None


def token_mask(
    positions: str,
    passes: Passes,
    inputs: Mapping[str, Any],
    shape: tuple[int, int],
    device: torch.device,
    prompt_length: int | Tensor | None = None,
) -> Tensor | None:
    """The tokens to steer, ``[batch, tokens]`` bool, or ``None`` for every one.

    Args:
        positions: ``"all"``, ``"prompt"``, ``"generated"`` or ``"last"``; padding never counts.
        inputs: the decoder's arguments by name.
        shape: batch and number of tokens of this pass.
        prompt_length: outside ``generate``, which knows its own: int, or ``[batch]``.
    """
    batch, tokens = shape
    offset = passes.offset(inputs, tokens)
    valid = _not_padding(inputs.get("attention_mask"), passes, shape, offset)
    if positions == "all":
        return valid
    place = torch.arange(offset, offset + tokens, device=device)  # [tokens]
    known = prompt_length if passes.prompt_length is None else passes.prompt_length
    if known is None:
        chosen = _outside_generate(positions, valid, place, offset, shape)
    else:
        if isinstance(known, Tensor):
            if known.numel() != batch:
                raise ValueError(
                    f"prompt_length must hold one length for each of {batch} sequences, came "
                    f"{known.numel()}"
                )
            known = known.to(device).view(-1, 1)
        first = known - 1 if positions == "last" else known
        chosen = place < first if positions == "prompt" else place >= first
    chosen = chosen.expand(batch, tokens)
    return chosen if valid is None else chosen & valid.to(device)


def _outside_generate(positions, valid, place, offset, shape) -> Tensor:
    """A plain forward call: what continues a cache is generated, what starts one is the prompt."""
    if positions == "last":
        if valid is None:
            return place == place[-1]
        last = (valid.long() * torch.arange(1, shape[1] + 1, device=valid.device)).amax(dim=1)
        return (place - offset + 1).unsqueeze(0) == last.unsqueeze(1).to(place.device)
    return torch.full_like(place, (offset > 0) == (positions == "generated"), dtype=torch.bool)


def _not_padding(mask: Any, passes: Passes, shape: tuple[int, int], offset: int) -> Tensor | None:
    """``[batch, tokens]`` bool from the attention mask, ``None`` where nothing is padding."""
    batch, tokens = shape
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        # generate expands the mask it was given (static caches); outside it there is no original.
        if passes.prompt_length is None:
            raise ValueError(
                "attention_mask must be [batch, tokens] on a steered model, since padding is read "
                f"from it; came {type(mask).__name__} "
                f"{tuple(mask.shape) if isinstance(mask, Tensor) else ''}"
            )
        mask = passes.prompt_mask
        if mask is None:
            return None
        mask = mask.repeat_interleave(batch // mask.shape[0], dim=0)
        generated = mask.new_ones(batch, max(0, offset + tokens - mask.shape[1]))
        mask = torch.cat([mask, generated], dim=1)
    if mask is None:
        return None
    covers_past = mask.shape[1] >= offset + tokens
    valid = mask[:, offset : offset + tokens] if covers_past else mask[:, -tokens:]
    valid = valid.bool()
    return None if bool(valid.all()) else valid
