"""One implementation of an operation: what is called, and which tensors it serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch


class Backend(NamedTuple):
    """The function, and why it cannot serve tensors of a device and type: ``None`` where it can."""

    call: Callable
    why_not: Callable[[torch.device, torch.dtype], str | None]


def plain(call: Callable) -> Backend:
    """In torch alone: it serves whatever torch does."""
    return Backend(call, lambda device, dtype: None)


def on_triton(module: str, name: str) -> Backend:
    """A function of a module that is imported when it is first called (triton is not light)."""

    def call(*args, **kwargs):
        return getattr(import_module(module), name)(*args, **kwargs)

    return Backend(call, _why_not_triton)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"device {device} is not a GPU (TRITON_INTERPRET=1 runs the kernels on a CPU)"
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"
