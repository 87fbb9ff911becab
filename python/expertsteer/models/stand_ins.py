"""What takes the place of a method in a live model, and gives it back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

STEERING = "_expertsteer_steering"  # under which a steered module knows its steering


class Uncopied:
    """Belongs to one live model, so it must not travel with a copy of it."""

    def __deepcopy__(self, memo: Any):
        raise ValueError("a steered model cannot be deep-copied; detach the steering first")

    def __reduce_ex__(self, protocol: int):
        raise ValueError("a steered model cannot be pickled; detach the steering first")


class Unmovable(Uncopied):
    """Stands in for a method of a live model."""

    def retire(self) -> None:
        """Whoever keeps it, a wrapper or a graph, sees the original through it from now on."""
        self.off = self.detached = True


class MethodSlot(Unmovable):
    """Stands in for one method on behalf of a steering.

    Attributes:
        original: the method; names: of its parameters.
        off: does what the original does, and no more.
    """

    def __init__(self, steering: Any, original: Callable):
        functools.update_wrapper(self, original)
        self.steering, self.original, self.off = steering, original, False
        self.names = tuple(inspect.signature(original).parameters)

    def inputs(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name."""
        return dict(zip(self.names, args)) | kwargs if args else kwargs


def put_back(owner: nn.Module, name: str, previous: Any, slot: Unmovable) -> None:
    """Undo a replacement, also where somebody else has wrapped the slot since.

    Harmless when called again, and where the replacement was never made.
    """
    slot.retire()
    if owner.__dict__.get(name) is slot:
        if previous is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = previous
    elif owner.__dict__.get(f"_old_{name}") is slot:  # accelerate's hooks, put on after ours
        owner.__dict__[f"_old_{name}"] = slot.original


def steerings_of(model: nn.Module) -> list[Any]:
    """What steers a model, or any part of it."""
    found = (module.__dict__.get(STEERING) for module in model.modules())
    return list({id(one): one for one in found if one is not None}.values())
