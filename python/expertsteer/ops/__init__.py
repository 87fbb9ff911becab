"""Check, choose, call: the one door to every operation and its backends.

``backend="auto"`` takes the fastest proven implementation that serves the tensors; an explicit
backend that cannot serve them raises `BackendError` with the reason.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from . import gaussian, native, native_rfm, native_steer, reference, reference_mi, reference_steer
from ._check_steer import check_steer
from .carry import Carry

BACKENDS = ("auto", "reference", "triton", "native", "torch")

# What callers of `steer` need beside it.
STEER_OPERATIONS = reference_steer.OPERATIONS
inverse_norms = reference_steer.inverse_norms


def _on_use(module: str, name: str) -> Callable:
    """A function of a submodule that is imported when it is first called (triton is not light)."""

    def call(*args, **kwargs):
        return getattr(import_module(f".{module}", __name__), name)(*args, **kwargs)

    return call


# Per operation, its implementations from the fastest to the definition.
_IMPLEMENTATIONS: dict[str, dict[str, Callable]] = {
    "steer": {"native": native_steer.steer, "reference": reference_steer.steer},
    "gram": {"native": native_rfm.gram, "reference": reference.gram},
    "cross_gram": {"native": native_rfm.cross_gram, "reference": reference.cross_gram},
    "times_transposed": {
        "native": native_rfm.times_transposed,
        "reference": reference.times_transposed,
    },
    "inner": {
        "triton": _on_use("triton_agop", "inner"),
        "native": native_rfm.inner,
        "reference": reference.inner,
    },
    "gradient_rows": {
        "triton": _on_use("triton_agop", "gradient_rows"),
        "native": native_rfm.gradient_rows,
        "reference": reference.gradient_rows,
    },
    "median_distance": {
        "native": native_rfm.median_distance,
        "reference": reference.median_distance,
    },
    "laplace": {
        "triton": _on_use("triton_laplace", "laplace"),
        "native": native_rfm.laplace,
        "reference": reference.laplace,
    },
    "laplace_points": {
        "triton": _on_use("triton_laplace", "laplace_points"),
        "reference": reference.laplace_points,
    },
    "ridge_solve": {"native": native_rfm.ridge_solve, "reference": reference.ridge_solve},
    "agop": {
        "triton": _on_use("triton_agop", "agop"),
        "native": native_rfm.agop,
        "reference": reference.agop,
    },
    "gaussian_information": {
        "native": gaussian.gaussian_information_native,
        "torch": gaussian.gaussian_information,
        "reference": reference.gaussian_information,
    },
    "max_norm_distances": {
        "native": native.max_norm_distances,
        "reference": reference_mi.max_norm_distances,
    },
    "ksg_counts": {
        "native": native.ksg_counts,
        "triton": _on_use("triton_ksg", "ksg_counts"),
        "reference": reference_mi.ksg_counts,
    },
}


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"device {device} is not a GPU (TRITON_INTERPRET=1 runs the kernels on a CPU)"
    return None if dtype == torch.float32 else f"dtype {dtype} is not torch.float32"


_WHY_NOT = {
    "native": native.why_not,
    "triton": _why_not_triton,
    "reference": lambda device, dtype: None,
    "torch": lambda device, dtype: None,
}


# Operations that ask more of a backend than the rest.
_WHY_NOT_FOR = {
    (name, "native"): native_rfm.why_not
    for name, backends in _IMPLEMENTATIONS.items()
    if getattr(backends.get("native"), "__module__", "") == native_rfm.__name__
} | {
    ("max_norm_distances", "native"): native.why_not_ksg,
    ("ksg_counts", "native"): native.why_not_ksg,
    ("gaussian_information", "native"): native_rfm.why_not,  # on CPUs only
}


def _why_not(operation: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return _WHY_NOT_FOR.get((operation, name), _WHY_NOT[name])(device, dtype)


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
            reason = _why_not(operation, name, device, dtype)
            if reason is None:
                if native.MISSING in reasons.values():
                    _warn_once(f"{native.MISSING}. Serving {operation} from {name!r}.")
                return implementation
            reasons[name] = reason
        raise BackendError(f"no backend serves {operation}: {reasons}")
    if backend not in BACKENDS:
        raise BackendError(f"backend must be one of {BACKENDS}, came {backend!r}")
    if backend not in offered:
        raise BackendError(
            f"backend {backend!r} does not implement {operation}; choose 'auto' or one of "
            f"{tuple(offered)}"
        )
    reason = _why_not(operation, backend, device, dtype)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot serve {operation}: {reason}")
    return offered[backend]


def operations() -> tuple[str, ...]:
    """The names of all operations."""
    return tuple(_IMPLEMENTATIONS)


def backends_of(operation: str) -> tuple[str, ...]:
    """The backends that implement ``operation``, the fastest first."""
    return tuple(_IMPLEMENTATIONS[operation])


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def steer(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None = None,
    *,
    operation: str = "add",
    gates: Tensor | None = None,
    thresholds: Tensor | None = None,
    inverse_norms: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Checked `reference_steer.steer`; fast backends work in place, so use the returned tensor.

    Raises:
        ValueError: an argument has the wrong shape, type or device, ``operation`` is unknown, or
            a row lies outside the table (not checked under a compiler or a graph capture).
        BackendError: ``backend`` cannot serve the call.
    """
    check_steer(hidden, table, rows, strengths, mask, operation, gates, thresholds, inverse_norms)
    return choose("steer", backend, hidden.device, hidden.dtype)(
        hidden,
        table,
        rows,
        strengths,
        mask,
        operation=operation,
        gates=gates,
        thresholds=thresholds,
        inverse_norms=inverse_norms,
    )


def laplace(
    gram: Tensor, bandwidth: Tensor, sizes: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Checked `reference.laplace`."""
    if gram.ndim != 3 or gram.shape[1] != gram.shape[2]:
        raise ValueError(f"gram must be [B, n, n], came {tuple(gram.shape)}")
    if bandwidth.shape != gram.shape[:1] or not bool((bandwidth > 0).all()):
        raise ValueError(
            f"bandwidth must be {gram.shape[0]} positive numbers, came {bandwidth.tolist()}"
        )
    return choose("laplace", backend, gram.device, gram.dtype)(gram, bandwidth, sizes)


def laplace_points(
    left: Tensor,
    right: Tensor,
    left_norms: Tensor,
    right_norms: Tensor,
    bandwidth: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Checked `reference.laplace_points`."""
    shapes = [tuple(t.shape) for t in (left, right, left_norms, right_norms, bandwidth)]
    expected = [shapes[0], (*shapes[0][:1], *shapes[1][1:-1], *shapes[0][-1:])]
    expected += [expected[0][:-1], expected[1][:-1], expected[0][:1]]
    if left.ndim != 3 or shapes != expected:
        raise ValueError(
            "left, right, left_norms, right_norms and bandwidth must be [B, m, d], [B, n, d], "
            f"[B, m], [B, n] and [B], came {shapes}"
        )
    chosen = choose("laplace_points", backend, left.device, left.dtype)
    return chosen(left, right, left_norms, right_norms, bandwidth)


def agop(
    gram: Tensor,
    weights: Tensor,
    alpha: Tensor,
    centre: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Carry]:
    """Checked `reference.agop`."""
    batch, n, _ = gram.shape
    if weights.shape != gram.shape or alpha.shape[:2] != (batch, n) or alpha.ndim != 3:
        raise ValueError(
            f"gram and weights must be [B, n, n] and alpha [B, n, C], came {tuple(gram.shape)}, "
            f"{tuple(weights.shape)} and {tuple(alpha.shape)}"
        )
    return choose("agop", backend, gram.device, gram.dtype)(gram, weights, alpha, centre, sizes)


def gaussian_information(x: Tensor, y: Tensor, *, backend: str = "auto") -> Tensor:
    """Checked `reference.gaussian_information`."""
    if x.ndim != 3 or y.ndim != 3 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be [layers, n, r] with one n, came {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if x.shape[1] <= x.shape[2] + y.shape[2]:
        raise ValueError(
            f"{x.shape[1]} rows are too few for {x.shape[2]} + {y.shape[2]} components; give "
            "more rows or ask for fewer components"
        )
    return choose("gaussian_information", backend, x.device, x.dtype)(x, y)


def shrunk_gaussian_information(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`reference_mi.shrunk_gaussian_information`, for more components than rows can carry."""
    return reference_mi.shrunk_gaussian_information(x, y)


KSG_TILE_BYTES = 256 * 2**20  # distances of all layers held at once


def ksg_information(
    x: Tensor, y: Tensor, k: int = 3, variant: int = 1, *, backend: str = "auto"
) -> Tensor:
    """Nearest-neighbour information of every pair of layers (Kraskov et al. 2004), in nats.

    Args:
        x: ``[L_x, n, r_x]`` and y: ``[L_y, n, r_y]`` float32, paired rows, as
            `reference_mi.on_a_grid` gives them where counts must equal those of double precision.
        k: neighbours; variant: 1 or 2.

    Returns:
        ``[L_x, L_y]`` float64. Memory: 256 MiB of distances, tile by tile of the rows, beside
        ``8 L_x L_y`` bytes per row of the tile for the counts.
    """
    counts = choose("ksg_counts", backend, x.device, x.dtype)
    # Distances are the same bits from either, so a backend without its own takes the reference's.
    own = backend if backend in _IMPLEMENTATIONS["max_norm_distances"] else "auto"
    distances_of = choose("max_norm_distances", own, x.device, x.dtype)
    n = x.shape[1]
    per_row = 4 * (x.shape[0] + y.shape[0]) * n + 8 * x.shape[0] * y.shape[0]
    rows = max(1, min(n, KSG_TILE_BYTES // per_row))
    sums = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, n, rows):
        tile = range(start, min(n, start + rows))
        distances = (distances_of(codes, tile) for codes in (x, y))
        n_x, n_y = _checked_counts(counts, *distances, k, variant)
        sums += reference_mi.digamma_sums(n_x, n_y, n, variant)
    return reference_mi.ksg_information(sums, n, k, variant)


def ksg_counts(
    x: Tensor, y: Tensor, k: int, variant: int = 1, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Checked `reference_mi.ksg_counts`."""
    counts = choose("ksg_counts", backend, x.device, x.dtype)
    return _checked_counts(counts, x, y, k, variant)


def _checked_counts(
    counts: Callable, x: Tensor, y: Tensor, k: int, variant: int
) -> tuple[Tensor, Tensor]:
    if x.ndim != 3 or y.ndim != 3 or x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
        raise ValueError(
            "x and y must be distances [layers, rows, n] of one dtype over the same points, came "
            f"{tuple(x.shape)} of {x.dtype} and {tuple(y.shape)} of {y.dtype}"
        )
    if variant not in (1, 2):
        raise ValueError(f"variant must be 1 or 2, came {variant!r}")
    if not isinstance(k, int) or not 1 <= k < x.shape[2]:
        raise ValueError(
            f"k must be an integer between 1 and the number of other points, {x.shape[2] - 1}; "
            f"came {k}"
        )
    return counts(x, y, k, variant)
