"""Passes of a ``generate`` that contradict what was seen: an error before a wrong token is written.

Nothing here knows what a cache is called or how it is made: masks, places and the passes before
tell that one was not understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import Tensor

from ..models.caches import unreadable

TESTED = "4.51.3 to 5.24.0"  # releases of transformers that `make test-versions` has run


def require_beginning(inputs: Mapping[str, Any], tokens: int, seen: int | Tensor) -> None:
    """A pass at place 0 that continues none of those before must begin a text of its own.

    Args:
        inputs: the decoder's arguments by name.
        seen: tokens that passes of this ``generate`` have shown.

    Raises:
        RuntimeError: something says that it does not.
    """
    says = [f"{name} cannot be read" for name in unreadable(inputs)]
    places = inputs.get("position_ids")
    if isinstance(places, Tensor) and places.ndim == 2 and places.device.type == "cpu":
        first = int(places[:, 0].min()) if places.numel() else 0
        says += [f"position_ids begin at {first}"] if first > 0 else []
    if says:
        _refuse(inputs, 0, tokens, f"behind {seen} tokens that this generate has shown", says)


def require_agreement(inputs: Mapping[str, Any], offset: int, tokens: int) -> None:
    """The attention mask shows no token behind those of a pass.

    Raises:
        RuntimeError: it does. A mask on a device is looked at only where a text begins, since
            that waits for it.
    """
    mask, end = inputs.get("attention_mask"), offset + tokens
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= end:
        return
    if (mask.device.type == "cpu" or offset == 0) and bool(mask[:, end:].any()):
        says = [f"attention_mask covers {mask.shape[1]} tokens", *unreadable(inputs)]
        _refuse(inputs, offset, tokens, "by the length of its cache", says)


def _refuse(inputs: Mapping[str, Any], offset: int, tokens: int, why: str, says: list[str]) -> None:
    raise RuntimeError(
        f"a forward pass of {tokens} tokens seems to stand at place {offset}, {why} "
        f"({'; '.join(says)}): its cache was not understood, among the arguments {sorted(inputs)}, "
        f"so the tokens to steer are unknown. transformers {version('transformers')} is installed, "
        f'tested are {TESTED}: install one of those, or attach with positions="all"'
    )
