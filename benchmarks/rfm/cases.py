"""The machines that the RFM benchmarks compare, on the same data with the same settings."""

from __future__ import annotations

import time
import warnings
from statistics import median

import torch
from torch import Tensor

import expertsteer as es

ITERS, REG = 5, 1e-3
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


def gate(X: Tensor, y: Tensor, machine, mode: dict = MEDIAN, iters: int = ITERS) -> dict:
    """How far ours and a peer's machine are from double precision; no speed without agreement.

    Raises:
        RuntimeError: our direction or predictions are off. What the peer's are is reported.
    """
    new, _ = problem(100, X.shape[1], seed=1)
    if mode["bandwidth_mode"] == "constant":
        new = at_distance(new)
    exact = ours(X.double(), y.double(), mode, iters)
    own = ours(X, y, mode, iters)
    truth = exact.predict(new.double())
    errors = [
        float((m.predict(new).double().reshape(truth.shape) - truth).abs().max())
        for m in (own, machine)
    ]
    cosine, peer_cosine = (
        abs(float(m.direction_.double() @ exact.direction_)) for m in (own, machine)
    )
    values = exact.directions(2).eigenvalues
    distinct = float(values[1]) < 0.9 * float(values[0])  # else any mixture is an eigenvector
    if errors[0] > max(2 * errors[1], 1e-4) or (distinct and cosine < 0.999):
        raise RuntimeError(
            f"errors {errors[0]:.1e} (ours) and {errors[1]:.1e}, cosine {cosine:.6f}: no speed is "
            "reported"
        )
    accuracy = {"error": errors[0], "peer_error": errors[1], "cosine": cosine}
    return accuracy | {"peer_cosine": peer_cosine}


def seconds(work, rounds: int = 5, warm: int = 1) -> float:
    """Median over ``rounds`` calls after ``warm`` more."""
    taken = []
    for _ in range(rounds + warm):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken[warm:])


def operations(n: int, d: int, iters: int = ITERS) -> float:
    """Floating-point operations that the Gram recurrence needs, one output."""
    return n * n * d + iters * 3 * n**3 + (iters + 1) * n**3 / 3
