"""Where the tokens of a forward pass stand, and where the prompt before them ends.

A place is counted from the beginning of its sequence. One `generate` may run several sequences of
passes side by side (the text, and the unconditional branch of classifier-free guidance), with
prompts of other lengths; tokens may stand before the text that its caller never gave (soft prompts,
prefixes in the cache). So places and ends are taken from what the passes show, of each sequence by
itself, and from the arguments of ``generate`` only what a pass cannot show.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.caches import cached_tokens, find_cache, holds_nothing, told_by_generate
from .contradictions import require_agreement, require_beginning
from .tracks import Track, begun_again, ended_at, goes_on, mark_of

_KEPT = 8  # sequences outside `generate` that are remembered, of caches that do not count


class Placed(NamedTuple):
    """Where a pass stands.

    Attributes:
        offset: tokens before it, a tensor where a cache keeps that on a device.
        end: where the prompt ends, ``None`` where nothing tells.
        virtual: tokens before the first one that the caller gave.
    """

    offset: int | Tensor
    end: int | None
    virtual: int


@dataclass
class Prompt:
    """What one ``generate`` (or none) tells of its prompt, and what its passes have shown.

    Attributes:
        length: in tokens, as the arguments tell; ``None`` outside ``generate``.
        mask: the attention mask that was given, or that ``generate`` infers.
        cached: tokens in the cache that was given; ends: tokens that end a text.
        guided: a second branch, with a prompt of its own, runs for classifier-free guidance.
        batch: sequences given, before beams and samples.
        nested: run within another ``generate``, as its assistant or by the same thread.
        missed: passes may have run before the first one that is placed.
        passes: how many have run; chose: whether any of them steered a token.
    """

    length: int | None = None
    mask: Tensor | None = None
    cached: int = 0
    ends: frozenset[int] = frozenset()
    guided: bool = False
    batch: int | None = None
    nested: bool = False
    missed: bool = False
    passes: int = 0
    chose: bool = False
    tracks: list[Track] = field(default_factory=list)
    _turn: int = 0
    _last_end: int = 0

    @classmethod
    def of_generate(cls, model: Any, args: tuple, kwargs: Mapping[str, Any]) -> Prompt:
        """Read the prompt from the arguments of ``model.generate``."""
        candidates = (args[:1] or (None,))[0], *(kwargs.get(n) for n in ("input_ids", "inputs"))
        tokens = next((c for c in candidates if c is not None), None)
        config = args[1] if len(args) > 1 else kwargs.get("generation_config")
        config = config or getattr(model, "generation_config", None)
        mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        given = [t for t in (tokens, embeds) if isinstance(t, Tensor) and t.ndim > 1]
        if mask is None and given and given[0].ndim == 2:
            mask = _inferred_mask(given[0], config, kwargs)
        # Beside a cache and only what is new, the mask has the length of the whole. Without a
        # prompt generation starts from one beginning-of-sequence token.
        known = [*given, *([mask] if isinstance(mask, Tensor) and mask.ndim == 2 else [])]
        length = max((t.shape[1] for t in known), default=1)
        cached = int(cached_tokens(find_cache(kwargs)) or 0)
        guided = _setting("guidance_scale", config, kwargs) not in (None, 1)
        batch = given[0].shape[0] if given else 1
        draft = bool(_setting("is_assistant", config, kwargs))
        return cls(length or 1, mask, cached, _ends(config, kwargs), guided, batch, draft)

    def place(
        self,
        inputs: Mapping[str, Any],
        tokens: int,
        *,
        outer_tokens: int | None = None,
        alone: bool = False,
        strict: bool = True,
    ) -> Placed:
        """Where a pass stands that has these arguments; it is remembered for the next ones.

        Args:
            inputs: the decoder's arguments by name.
            tokens: how many the pass has.
            outer_tokens: how many the whole model was called with, where that is known.
            alone: no ``generate`` can be seen from the steered model, a part of another one, so
                a text that repeats the one before and adds a token to it is taken to go on.
            strict: refuse a pass whose place is in doubt.

        Raises:
            RuntimeError: the pass contradicts what was seen, so that its place is unknown.
        """
        cache = find_cache(inputs)
        known = self._of_cache(cache)
        offset = self._offset(cache, known, inputs, tokens)
        generating = self.length is not None
        if known is None and generating and isinstance(offset, Tensor) and not _capturing(offset):
            offset = int(offset)  # once for each `generate`; later passes do not wait
        found = known or self._continued(cache, offset, inputs, tokens, alone)
        if generating and strict and isinstance(offset, int):
            begins = known is None and self.tracks and offset == 0
            if begins and (found is None or tokens <= found.prompt):
                require_beginning(inputs, tokens, self.tracks[0].end)
            require_agreement(inputs, offset, tokens)
        if found is None:
            found = self._begin(offset, inputs, tokens, outer_tokens)
        self._remember(found, cache, offset, inputs, tokens, alone)
        if not generating:
            return Placed(offset, found.prompt if alone and cache is None else None, 0)
        first = found is self.tracks[0]
        return Placed(offset, found.prompt, found.prompt - self.length if first else 0)

    @property
    def start(self) -> int:
        """Tokens in the cache before prompts that go into theirs in one pass; -1 where they may
        not, and the prompt's length is what tells.
        """
        return self.cached if self.guided else -1

    @property
    def main(self) -> tuple[int, int]:
        """Where the prompt of the first sequence ends, and the address of its cache."""
        first = self.tracks[0]
        cache = first.cache() if first.cache else None
        return first.prompt, 0 if cache is None else id(cache)

    def mark(self, chosen: Tensor | bool) -> None:
        """Take note of what a pass steers."""
        self.passes += 1
        self.chose = self.chose or chosen is not False

    def went_by(self, passes: int, chose: bool, end: int) -> None:
        """Take note of passes of the first sequence that were placed elsewhere.

        Args:
            end: where the last of them ended, -1 where that was not asked for.
        """
        self.passes += passes
        self.chose = self.chose or chose
        if end < 0 or not self.tracks:
            return
        self._moved(self.tracks[0], end)

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Passes that are run again, to look at them, leave no trace."""
        kept = vars(self) | {"tracks": [replace(track) for track in self.tracks]}
        try:
            yield
        finally:
            vars(self).update(kept)

    def _moved(self, track: Track, end: int | Tensor) -> None:
        """Take note of a sequence's next pass."""
        self._turn += 1
        track.turn, track.end = self._turn, end
        if isinstance(end, int):
            track.reach, self._last_end = max(track.reach, end), end

    def _offset(
        self, cache: Any, known: Track | None, inputs: Mapping[str, Any], tokens: int
    ) -> int | Tensor:
        told = told_by_generate(inputs, tokens)
        if told is not None:
            return told
        length = cached_tokens(cache)
        if length is not None:
            return length
        if known is not None:  # recurrent states do not count
            return 0 if holds_nothing(cache) else known.end
        return self._last_end

    def _of_cache(self, cache: Any) -> Track | None:
        """The sequence whose cache this is."""
        if cache is None:
            return None
        mark = mark_of(cache)
        return next((s for s in self.tracks if s.cache and s.cache() is mark), None)

    def _continued(
        self, cache: Any, offset: int | Tensor, inputs: Mapping[str, Any], tokens: int, alone: bool
    ) -> Track | None:
        """The sequence that a pass goes on with whose cache was never seen, if any.

        Of several the one that rested longest.
        """
        if isinstance(offset, Tensor):
            return None
        if self.guided and len(self.tracks) == 1:
            fits = []  # of guidance's other branch the first pass, whatever that begins with
        elif offset:
            fits = ended_at(self.tracks, offset, copied=self.length is not None)
        elif self.length is not None:
            fits = begun_again(self.tracks, inputs.get("input_ids"), tokens)
        else:
            ids = inputs.get("input_ids") if alone and cache is None else None
            fits = [s for s in self.tracks if goes_on(s.ids, ids)]
        return min(fits, key=lambda s: s.turn, default=None)

    def _begin(
        self, offset: int | Tensor, inputs: Mapping[str, Any], tokens: int, outer_tokens: int | None
    ) -> Track:
        """A sequence that no pass has shown before."""
        if self.length is not None and not self.tracks:
            # Not what the pass holds: candidates of speculative decoding may stand behind the
            # prompt, and the rest of it may come in later chunks.
            first = not self.missed and not self.passes
            virtual = self._virtual(offset, inputs, tokens, outer_tokens) if first else 0
            end = self.length + virtual
        else:
            end = offset + tokens if isinstance(offset, int) else tokens
            if self.guided and len(self.tracks) == 1:  # as far behind its prompt as the other one
                end -= int(self.tracks[0].end) - self.tracks[0].prompt
        begun = Track(prompt=end, end=end, turn=self._turn)
        ids = inputs.get("input_ids")
        if self.length is not None and ids is not None and isinstance(offset, int) and not offset:
            begun.ids = ids[:, :end].detach().clone()
        self.tracks.append(begun)
        return begun

    def _virtual(
        self, offset: int | Tensor, inputs: Mapping[str, Any], tokens: int, outer_tokens: int | None
    ) -> int:
        """How many tokens the first pass has, and its cache, that the caller did not give."""
        prefix = offset if isinstance(offset, int) and not self.cached else 0
        if inputs.get("input_ids") is not None:  # virtual tokens have no ids
            return prefix
        given = self.length - self.cached if outer_tokens is None else outer_tokens
        return prefix + max(0, tokens - given)

    def _remember(
        self,
        found: Track,
        cache: Any,
        offset: int | Tensor,
        inputs: Mapping[str, Any],
        tokens: int,
        alone: bool,
    ) -> None:
        self._moved(found, offset + tokens)
        found.cache = None if cache is None else weakref.ref(mark_of(cache))
        if self.length is not None:
            return
        ids = inputs.get("input_ids")
        found.ids = ids.detach().clone() if alone and cache is None and ids is not None else None
        if len(self.tracks) > _KEPT:
            self.tracks.remove(min(self.tracks, key=lambda s: s.turn))


def _capturing(offset: Tensor) -> bool:
    return offset.is_cuda and torch.cuda.is_current_stream_capturing()


def _setting(name: str, config: Any, kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get(name, getattr(config, name, None))


def _ends(config: Any, kwargs: Mapping[str, Any]) -> frozenset[int]:
    end = _setting("eos_token_id", config, kwargs)
    if end is None:
        return frozenset()
    return frozenset(torch.as_tensor(end, device="cpu").flatten().tolist())


def _inferred_mask(prompt: Tensor, config: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask that ``generate`` makes up itself: padding tokens, unless they also end texts."""
    pad = _setting("pad_token_id", config, kwargs)
    if pad is None or pad in _ends(config, kwargs):
        return None
    return (prompt != pad).long()
