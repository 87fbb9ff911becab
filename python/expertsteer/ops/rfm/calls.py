"""The passes that callers hand their own tensors to, checked: the chosen backend serves them."""

from __future__ import annotations

from torch import Tensor

from ..choice import choose
from .carry import Carry


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
