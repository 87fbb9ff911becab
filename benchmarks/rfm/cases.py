"""The machines that the RFM benchmarks compare, on the same data with the same settings."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

import expertsteer as es

ITERS, REG = 5, 1e-3
GRID = {"bandwidth": (1.0, 10.0, 100.0), "center_grads": (False, True)}  # neural_controllers'
MEDIAN = {"bandwidth": 1.0, "bandwidth_mode": "median"}
CONSTANT = {"bandwidth": 10.0, "bandwidth_mode": "constant", "normalize": "max"}


def problem(n: int, d: int, outputs: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian states and labels that depend on few coordinates, one of them by a product."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator)
    y = torch.stack([X[:, c] * X[:, c + 1] + X[:, c + 2] > 0 for c in range(outputs)], dim=1)
    return X, y.float()


def at_distance(X: Tensor, distance: float = 10.0) -> Tensor:
    """Gaussian states scaled to that distance from one another, for bandwidths in its units."""
    return X * (distance / (2 * X.shape[1]) ** 0.5)


def ours(X: Tensor, y: Tensor, mode: dict = MEDIAN, iters: int = ITERS, **options):
    """Fit; the direction comes with it."""
    return es.RFM(**mode, reg=REG, iters=iters, **options).fit(X, y)


def xrfm(
    X: Tensor,
    y: Tensor,
    mode: dict = MEDIAN,
    kernel: str = "l2_high_dim",
    iters=ITERS,
    device="cpu",
):
    """xRFM and the decomposition of its metric, as neural_controllers takes its directions."""
    from xrfm.rfm_src.recursive_feature_machine import RFM

    adaptive = mode["bandwidth_mode"] == "median"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = RFM(
            kernel,
            iters=iters,
            bandwidth=mode["bandwidth"],
            bandwidth_mode="adaptive" if adaptive else "constant",
            device=device,
            verbose=False,
        )
        machine.fit(
            (X, y),
            (X[:2], y[:2]),
            reg=REG,
            solver="cholesky",
            verbose=False,
            early_stop_rfm=False,
            return_best_params=False,
        )
    machine.direction_ = torch.linalg.eigh(machine.M).eigenvectors[:, -1]
    return machine


class Plain:
    """The method as published, in d dimensions: plain torch, a d x d metric, its eigenvectors."""

    def __init__(self, X: Tensor, y: Tensor, mode: dict = MEDIAN, iters: int = ITERS):
        self.X, metric = X, torch.eye(X.shape[1])
        for t in range(iters + 1):
            self.metric = metric
            distance = self._distances(X)
            length = mode["bandwidth"]
            if mode["bandwidth_mode"] == "median":
                length = length * distance[torch.ones_like(distance).tril(-1).bool()].median()
            self.length = length
            kernel = torch.exp(-distance / length)
            self.alpha = torch.linalg.solve(kernel + REG * torch.eye(len(X)), y)
            if t == iters:
                break
            weights = torch.where(distance > 0, kernel / (length * distance), 0.0)
            seen = X @ metric
            metric = torch.zeros_like(metric)
            for a in self.alpha.T:
                rows = (weights @ a)[:, None] * seen - weights @ (a[:, None] * seen)
                metric += rows.T @ rows
            if mode.get("normalize") == "max":
                metric /= metric.max()
        self.direction_ = torch.linalg.eigh(self.metric).eigenvectors[:, -1]

    def _distances(self, new: Tensor) -> Tensor:
        seen = new @ self.metric
        own, others = (seen * new).sum(1), ((self.X @ self.metric) * self.X).sum(1)
        squared = own[:, None] + others - 2 * seen @ self.X.T
        if new is self.X:
            squared.fill_diagonal_(0)
        return squared.clamp(min=0).sqrt()

    def predict(self, new: Tensor) -> Tensor:
        return torch.exp(-self._distances(new) / self.length) @ self.alpha


def operations(n: int, d: int, iters: int = ITERS) -> float:
    """Floating-point operations that the Gram recurrence needs, one output."""
    return n * n * d + iters * 3 * n**3 + (iters + 1) * n**3 / 3
