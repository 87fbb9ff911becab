"""Affine maps, and how each is fitted: principal subspace, rotation, ridge, gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..support.progress import progress
from .subspace import nearest_isometry, principal_axes


@dataclass(frozen=True)
class AffineMap:
    """``(h - centre) @ weight + bias`` and, where the method has one, the way back from a code:
    ``(c - bias) @ back_weight + back_bias``. Differences come first, so large offsets cost no
    digits."""

    centre: Tensor  # [d_E]
    weight: Tensor  # [d_E, d_T]
    bias: Tensor  # [d_T]
    back_weight: Tensor | None = None  # [d_T, d_E]
    back_bias: Tensor | None = None  # [d_E]

    def __call__(self, states: Tensor) -> Tensor:
        return (states - self.centre) @ self.weight + self.bias

    def back(self, codes: Tensor) -> Tensor:
        return (codes - self.bias) @ self.back_weight + self.back_bias

    def used(self) -> AffineMap:
        """Without the dimensions of the code that are the same for every state."""
        kept = self.weight.any(dim=0)
        if bool(kept.all()):
            return self
        back = self.back_weight[kept]
        return AffineMap(self.centre, self.weight[:, kept], self.bias[kept], back, self.back_bias)

    def rotated(self, rotation: Tensor, bias: Tensor) -> AffineMap:
        """Turn the code about its offset and move that to ``bias``; the way back undoes both."""
        weight, back_weight = self.weight @ rotation, rotation.mT @ self.back_weight
        return AffineMap(self.centre, weight, bias, back_weight, self.back_bias)


def unrotated(h: Tensor, d_target: int, settings: dict[str, Any]) -> AffineMap | None:
    if settings["method"] in ("ridge", "low_rank"):
        return None
    if settings["method"] == "identity":
        zero = h.new_zeros(d_target)
        return AffineMap(zero, torch.eye(d_target, dtype=h.dtype, device=h.device), zero)
    if settings["solver"] == "closed_form":
        return _principal_subspace(h, d_target)
    adam = {k: settings[k] for k in ("steps", "learning_rate", "seed")}
    return _adam(h, d_target, **adam)


def _principal_subspace(h: Tensor, d_target: int) -> AffineMap:
    """The auto-encoder's minimiser in closed form: the top principal components, zero-padded."""
    mean = h.mean(dim=0)
    axes = principal_axes(h - mean, d_target)  # [d_E, at most d_T]
    weight = h.new_zeros(h.shape[1], d_target)  # [d_E, d_T]
    weight[:, : axes.shape[1]] = axes
    return AffineMap(mean, weight, h.new_zeros(d_target), weight.mT.contiguous(), mean)


def procrustes(encoder: AffineMap, h: Tensor, t: Tensor) -> AffineMap:
    """Rotate the code onto the target's states: ``min ||(code - mean) Q - (t - mean)||``.

    Orthogonal, so the decoder undoes it exactly and the reconstruction error stays what it was.
    Dimensions that the code does not use need no rotation, nor any place in the decomposition.
    """
    used = encoder.used()
    code, goal = used(h), t.mean(dim=0)
    centre = code.mean(dim=0)
    code, goals = code - centre, t - goal
    product = code.mT @ goals
    if not bool(product.isfinite().all()):  # states whose squares are beyond their type
        product = code.double().mT @ goals.double()
    rotation = nearest_isometry(product).to(h)
    # The encoder's own offset need not be the mean of its code (Adam's is trained).
    return used.rotated(rotation, goal + (used.bias - centre) @ rotation)


def ridge(h: Tensor, t: Tensor, reg: float) -> AffineMap:
    """Affine least squares onto the target's states, through the smaller of N x N and d x d."""
    mean_h, mean_t = h.mean(dim=0), t.mean(dim=0)
    x, y = h - mean_h, t - mean_t
    penalty = reg * x.square().sum() / x.shape[1] + torch.finfo(h.dtype).tiny
    if x.shape[0] < x.shape[1]:
        gram = x @ x.mT
        gram.diagonal().add_(penalty)
        weight = x.mT @ torch.linalg.solve(gram, y)
    else:
        covariance = x.mT @ x
        covariance.diagonal().add_(penalty)
        weight = torch.linalg.solve(covariance, x.mT @ y)
    return AffineMap(mean_h, weight, mean_t)


@torch.enable_grad()
def _adam(h: Tensor, d_target: int, steps: int, learning_rate: float, seed: int) -> AffineMap:
    """Train f and g by gradient descent, as the paper does."""
    mean = h.mean(dim=0)
    spread = (h - mean).square().mean().sqrt().clamp(min=torch.finfo(h.dtype).tiny)
    x = (h - mean) / spread  # a loss of order one, whatever the model's scale
    generator = torch.Generator().manual_seed(seed)
    d_expert = h.shape[1]

    def initial(rows: int, columns: int) -> Tensor:
        noise = torch.randn(rows, columns, generator=generator, dtype=h.dtype, device="cpu").to(h)
        return (noise / rows**0.5).requires_grad_()

    encoder, decoder = initial(d_expert, d_target), initial(d_target, d_expert)
    biases = [h.new_zeros(d).requires_grad_() for d in (d_target, d_expert)]
    optimiser = torch.optim.Adam([encoder, decoder, *biases], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    first = None
    for _ in progress(range(steps), "train auto-encoder"):
        optimiser.zero_grad()
        reconstruction = (x @ encoder + biases[0]) @ decoder + biases[1]
        loss = (x - reconstruction).square().sum(dim=1).mean()
        first = loss.item() if first is None else first
        loss.backward()
        optimiser.step()
        schedule.step()
    encoder, decoder, code_bias, bias = (p.detach() for p in (encoder, decoder, *biases))
    if not loss.item() <= first:
        raise ValueError(f"learning_rate {learning_rate} makes the training diverge; lower it")
    back_bias = (bias + code_bias @ decoder) * spread + mean
    return AffineMap(mean, encoder / spread, code_bias, decoder * spread, back_bias)
