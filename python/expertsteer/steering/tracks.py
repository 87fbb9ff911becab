"""Passes that continue one another: which sequence goes on where a cache was never seen before.

Caches are copied (searches that branch), made anew (a loop that reads the whole text again) or not
used at all; then lengths and tokens tell what a pass goes on with.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models.caches import first_tensor


@dataclass(eq=False)
class Track:
    """Passes that continue one another, by their cache or, without one, by their length.

    Attributes:
        prompt: places up to its prompt's end; end: up to its last pass's.
        turn: when that was, in passes; reach: the farthest end so far.
        ids: its prompt's tokens, where a pass has shown them from the first one on; outside
            ``generate`` those of its last pass, where nothing else tells what follows it.
    """

    prompt: int
    end: int | Tensor
    turn: int
    reach: int = 0
    cache: weakref.ref | None = None
    ids: Tensor | None = None

    def taken(self) -> bool:
        """Whether the cache of its last pass still is there, to tell its next one."""
        return self.cache is not None and self.cache() is not None


def ended_at(tracks: Sequence[Track], offset: int, *, copied: bool) -> list[Track]:
    """Sequences that ended at a place; one whose own cache still is there only without another.

    Args:
        copied: where none ended there, take those that have passed it: a copy of their cache.
    """
    ended = [s for s in tracks if s.end == offset]
    found = [s for s in ended if not s.taken()] or ended
    return found or [s for s in tracks if copied and s.reach >= offset]


def begun_again(tracks: Sequence[Track], ids: Tensor | None, tokens: int) -> list[Track]:
    """Sequences that a pass from the first place on repeats: with a token more, or at all.

    What stands behind a prompt that was seen is taken to answer it.
    """
    longer = [s for s in tracks if s.end == tokens - 1 and not s.taken()]
    if ids is None:
        return longer
    fits = [s for s in tracks if s.prompt <= tokens and _repeats(s.ids, ids)]
    return [s for s in fits if s in longer] or fits


def mark_of(cache: Any) -> Any:
    """What tells a cache from others, and can be referred to weakly."""
    tensor = first_tensor(cache) if isinstance(cache, (list, tuple)) else None
    return cache if tensor is None else tensor


def goes_on(before: Tensor | None, ids: Tensor | None) -> bool:
    """Whether each text repeats one of those before, and adds one token to it."""
    if before is None or ids is None or ids.ndim != 2 or len(before) != len(ids):
        return False
    if ids.shape[1] != before.shape[1] + 1:
        return False
    same = (ids[:, None, :-1] == before[None].to(ids.device)).all(dim=-1)  # beams change places
    return bool(same.any(dim=1).all())


def _repeats(prompt: Tensor | None, ids: Tensor) -> bool:
    """Whether each text begins with one of the prompts; there may be more of them, or fewer."""
    if prompt is None or ids.ndim != 2 or ids.shape[1] < prompt.shape[1]:
        return False
    same = ids[:, None, : prompt.shape[1]] == prompt[None].to(ids.device)
    return bool(same.all(dim=-1).any(dim=1).all())
