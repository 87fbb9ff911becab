"""Gradient checkpointing of steered layers: a layer that runs again must steer the same tokens.

The second run comes during the backward pass, outside the decoder, perhaps in another thread and
after other forward passes. So the checkpointing function takes the pass it was called in with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .state import OpenPass, State

_NAME = "_gradient_checkpointing_func"  # of transformers, on the layers or on their decoder


class CheckpointedPass:
    """Stands in for a checkpointing function: what it runs again is steered as the first time."""

    def __init__(self, steering: State, original: Callable):
        self.steering, self.original = steering, original

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:

        steering, first = self.steering, self.steering.current.opened
        if first is None:
            return self.original(function, *args, **kwargs)

        def again(*inputs: Any, **options: Any) -> Any:
            if steering.current.opened is not None or not steering.attached:
                return function(*inputs, **options)
            opened = OpenPass(steering, first.chosen, first.shape)
            try:
                return function(*inputs, **options)
            finally:
                opened.close()

        return self.original(again, *args, **kwargs)


def watch(steering: State, modules: list[nn.Module]) -> None:
    """Put the stand-in where checkpointing was switched on, also after attaching."""
    for module in modules:
        function = module.__dict__.get(_NAME)
        if function is not None and not isinstance(function, CheckpointedPass):
            setattr(module, _NAME, CheckpointedPass(steering, function))


def unwatch(steering: State, modules: list[nn.Module]) -> None:
    """Take its own stand-ins away, not those of a steering that came after it."""
    for module in modules:
        function = module.__dict__.get(_NAME)
        if isinstance(function, CheckpointedPass) and function.steering is steering:
            setattr(module, _NAME, function.original)
