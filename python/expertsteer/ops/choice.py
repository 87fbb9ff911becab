"""Choose a backend: by name, or the fastest proven one that serves the tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch

from . import extension
from .information.backends import IMPLEMENTATIONS as INFORMATION
from .rfm.backends import IMPLEMENTATIONS as RFM
from .steering.backends import IMPLEMENTATIONS as STEERING

BACKENDS = ("auto", "reference", "triton", "native", "torch")

# Per operation, its implementations from the fastest to the definition.
_IMPLEMENTATIONS = STEERING | RFM | INFORMATION

# Where a backend has been run and measured: "auto" takes it nowhere else. No kernel here has met a
# GPU yet, so on one they serve only when asked for by name.
_PROVEN_ON = {"native": ("cpu",), "triton": ()}


class BackendError(ValueError):
    """The backend asked for by name cannot serve the call."""


def choose(operation: str, backend: str, device: torch.device, dtype: torch.dtype) -> Callable:
    """The implementation of ``operation`` for tensors on ``device`` of ``dtype``.

    Hot paths call this once and keep the result.

    Raises:
        BackendError: ``backend`` is unknown, has no such operation, or cannot serve the tensors.
    """
    offered = _IMPLEMENTATIONS[operation]
    if backend == "auto":
        reasons = {}
        for name, implementation in offered.items():
            if device.type not in _PROVEN_ON.get(name, (device.type,)):
                continue
            reason = implementation.why_not(device, dtype)
            if reason is None:
                if extension.MISSING in reasons.values():
                    _warn_once(f"{extension.MISSING}. Serving {operation} from {name!r}.")
                return implementation.call
            reasons[name] = reason
        raise BackendError(f"no backend serves {operation}: {reasons}")
    if backend not in BACKENDS:
        raise BackendError(f"backend must be one of {BACKENDS}, came {backend!r}")
    if backend not in offered:
        raise BackendError(
            f"backend {backend!r} does not implement {operation}; choose 'auto' or one of "
            f"{tuple(offered)}"
        )
    reason = offered[backend].why_not(device, dtype)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot serve {operation}: {reason}")
    return offered[backend].call


def operations() -> tuple[str, ...]:
    """The names of all operations."""
    return tuple(_IMPLEMENTATIONS)


def backends_of(operation: str) -> tuple[str, ...]:
    """The backends that implement ``operation``, the fastest first."""
    return tuple(_IMPLEMENTATIONS[operation])


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
