"""Step 3: the Recursive Feature Machine, without ever forming a d x d matrix.

Laplace-kernel ridge regression, average gradient outer product (AGOP), repeat (Radhakrishnan et
al., Science 2024, arXiv 2212.13881). With the points centred, everything the iteration needs is
the n x n matrix ``P = X M X^T``:

    D_ij = sqrt(P_ii + P_jj - 2 P_ij)      K = exp(-D / L)      alpha = (K + reg 1)^-1 y
    W_ij = K_ij / (L D_ij)                 T_c = diag(W alpha_c) - W diag(alpha_c)
    P <- sum_c (T_c P)^T (T_c P)

because the gradients of output c at the points are the rows of ``-T_c X M``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from ._rfm_parts import Rows, Step, auc, solve
from ._rfm_spectrum import top_direction
from .artifacts import require_finite

BANDWIDTH_MODES = ("median", "constant")
NORMALIZATIONS = ("none", "max")
TUNING_METRICS = ("mse", "auc")


class RFM:
    """Recursive Feature Machine for one problem or a batch of independent ones.

    Args:
        bandwidth: Laplace bandwidth; a multiple of the median distance between training points in
            mode ``"median"``, the distance itself in mode ``"constant"``.
        bandwidth_mode: ``"median"`` (recomputed at every fit) or ``"constant"``.
        reg: ridge added to the kernel's diagonal.
        iters: AGOP updates; there are ``iters + 1`` fits, the first with the identity metric.
        center_grads: subtract the mean gradient before the outer product.
        normalize: ``"max"`` divides M by its largest entry at every step, as xRFM does (only
            matters in mode ``"constant"``); ``"none"`` leaves it.
        tuning_metric: ``"mse"`` or ``"auc"`` (binary labels, one output): what picks the best fit
            when validation rows are given; earlier fits win ties.
        backend: see `expertsteer.ops`.

    Attributes:
        direction_: ``[D]`` or ``[B, D]``, the top eigenvector of the AGOP that the best fit used as
            its metric (of the first fit's own AGOP when that fit is best), unit norm, its sign
            such that projections correlate with the first output.
        best_iter_: int or ``[B]``, the fit that was kept: the best on validation rows, else the
            last.
        validation_: list of the metric per fit, each a float or ``[B]``; empty without rows.
        bandwidth_: the kept fit's bandwidth, float or ``[B]``.

    Computes in float64 for float64 input and in float32 otherwise.
    """

    def __init__(
        self,
        bandwidth: float = 3.0,
        bandwidth_mode: str = "median",
        reg: float = 0.1,
        iters: int = 3,
        center_grads: bool = False,
        normalize: str = "none",
        tuning_metric: str = "mse",
        backend: str = "auto",
    ):
        for name, value in (("bandwidth", bandwidth), ("reg", reg)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, came {value}")
        if iters < 1:
            raise ValueError(f"iters must be at least 1, came {iters}")
        for name, value, choices in (
            ("bandwidth_mode", bandwidth_mode, BANDWIDTH_MODES),
            ("normalize", normalize, NORMALIZATIONS),
            ("tuning_metric", tuning_metric, TUNING_METRICS),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, came {value!r}")
        if backend not in ops.BACKENDS:
            raise ValueError(f"backend must be one of {ops.BACKENDS}, came {backend!r}")
        self.bandwidth, self.bandwidth_mode, self.reg, self.iters = (
            bandwidth,
            bandwidth_mode,
            reg,
            iters,
        )
        self.center_grads, self.normalize, self.tuning_metric = (
            center_grads,
            normalize,
            tuning_metric,
        )
        self.backend = backend

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for provenance."""
        names = ("bandwidth", "bandwidth_mode", "reg", "iters", "center_grads", "normalize")
        return {name: getattr(self, name) for name in (*names, "tuning_metric")}

    def fit(
        self, X: Tensor, y: Tensor, X_val: Tensor | None = None, y_val: Tensor | None = None
    ) -> RFM:
        """Fit on ``X [N, D]`` or ``[B, N, D]`` and ``y [N]``, ``[N, C]`` or ``[B, N, C]``.

        Validation rows (same layout, own N) decide which fit is kept, per problem.

        Raises:
            ValueError: shapes that do not match, fewer than two rows, non-finite entries, all
                points equal, a kernel matrix that is not positive definite at this ``reg``.
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together")
        self._batched = X.ndim == 3
        self._y_was_vector = torch.as_tensor(y).ndim == 1
        X, y = _problem("X", X, "y", y)
        if X.shape[1] < 2:
            raise ValueError(f"X must hold at least 2 rows, came {X.shape[1]}")
        self._mean = X.mean(dim=1, keepdim=True)  # [B, 1, D]
        self._points = X - self._mean
        validation = None
        if X_val is not None:
            X_val, y_val = _problem("X_val", X_val, "y_val", y_val)
            X_val, y_val = X_val.to(X.dtype), y_val.to(X.dtype)
            if (
                not X_val.shape[1]
                or X_val.shape[::2] != X.shape[::2]
                or y_val.shape[2] != y.shape[2]
            ):
                raise ValueError(
                    f"X_val {tuple(X_val.shape)} and y_val {tuple(y_val.shape)} must match X "
                    f"{tuple(X.shape)} and y {tuple(y.shape)} in problems, width and outputs, and "
                    "hold at least one row"
                )
            validation = (Rows(X_val - self._mean, self._points), y_val)
        self._iterate(y, validation)
        self._keep_best(y)
        return self

    def predict(self, X: Tensor) -> Tensor:
        """Outputs of the kept fit, ``[N, C]`` or ``[B, N, C]`` (``[N]`` for a 1-d ``y`` in fit)."""
        if not hasattr(self, "direction_"):
            raise ValueError("this RFM is not fitted; call fit(X, y) first")
        expected = (self._points.shape[0],) if self._batched else ()
        if X.ndim != len(expected) + 2 or X.shape[:-2] != expected:
            raise ValueError(f"X must be [{'B, ' * self._batched}N, D] as in fit, came {X.shape}")
        X = X if self._batched else X.unsqueeze(0)
        if X.shape[2] != self._points.shape[2]:
            raise ValueError(f"X must have {self._points.shape[2]} columns, came {X.shape[2]}")
        require_finite("X", X)
        rows = Rows(X.to(self._points.dtype) - self._mean, self._points)
        outputs = torch.empty(0)
        for t, step in enumerate(self._steps):
            here = rows.predict(step)
            kept = (self._best == t).view(-1, 1, 1)
            outputs = here if t == 0 else torch.where(kept, here, outputs)
            if t + 1 < len(self._steps):
                rows.advance(step, self.center_grads)
        outputs = outputs.squeeze(-1) if self._y_was_vector else outputs
        return outputs if self._batched else outputs[0]

    def _iterate(self, y: Tensor, validation: tuple[Rows, Tensor] | None) -> None:
        """Run all fits, keeping each one's `Step` and its validation metric."""
        points = self._points
        gram = points @ points.mT  # P_0: the metric starts as the identity
        if not bool((gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1) > 0).all()):
            raise ValueError("all rows of X are equal, so there is nothing to learn from")
        features = points  # X M_t, only followed where its scale is asked for
        self._steps: list[Step] = []
        self._metrics: list[Tensor] = []
        for t in range(self.iters + 1):
            bandwidth = self._bandwidth(gram)
            kernel, weights = ops.laplace(gram, bandwidth, backend=self.backend)
            alpha = solve(kernel, y, self.reg)
            step = Step(gram, weights, alpha, bandwidth, torch.ones_like(bandwidth))
            self._steps.append(step)
            if validation is not None:
                rows, y_val = validation
                self._metrics.append(self._metric(rows.predict(step), y_val))
            if t == self.iters:
                break
            if self.normalize == "max":
                features, step.rescale = self._normalised_features(step, features)
            gram = ops.agop(gram, weights, alpha, None, self.center_grads, backend=self.backend)
            gram = gram / step.rescale.view(-1, 1, 1)
            self._require_gradients(gram)
            if validation is not None:
                rows.advance(step, self.center_grads)

    def _require_gradients(self, gram: Tensor) -> None:
        """A fit without any gradient, or one that overflowed, has no direction to give."""
        largest = gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
        lost = ~(torch.isfinite(gram).all(dim=-1).all(dim=-1) & (largest > 0))
        if bool(lost.any()):
            raise ValueError(
                f"the gradients of problems {lost.nonzero().flatten().tolist()} vanish or overflow "
                f"at bandwidth={self.bandwidth} ({self.bandwidth_mode}): it is too small for the "
                "distances, the labels are all zero, or the states' scale is extreme; raise "
                "bandwidth or give float64 states"
            )

    def _bandwidth(self, gram: Tensor) -> Tensor:
        if self.bandwidth_mode == "constant":
            return gram.new_full(gram.shape[:1], self.bandwidth)
        n = gram.shape[-1]
        upper = torch.triu_indices(n, n, offset=1, device=gram.device)
        distances = ops.reference.distances(gram)[:, upper[0], upper[1]]
        median = distances.median(dim=-1).values
        # More than half of the points coincide: their mean distance is still a scale.
        median = torch.where(median > 0, median, distances.mean(dim=-1))
        return self.bandwidth * median.clamp(min=torch.finfo(gram.dtype).tiny)

    def _normalised_features(self, step: Step, features: Tensor) -> tuple[Tensor, Tensor]:
        """``X M_{t+1}`` and its divisor: M is positive semidefinite, so its largest entry lies on
        the diagonal, which the gradient rows give without forming M."""
        rows = ops.reference.gradient_rows(step.weights, step.alpha, features, self.center_grads)
        largest = sum(r.square().sum(dim=1) for r in rows).amax(dim=-1)  # [B]
        largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
        following = ops.agop(
            step.gram, step.weights, step.alpha, features, self.center_grads, backend=self.backend
        )
        return following / largest.view(-1, 1, 1), largest

    def _metric(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.tuning_metric == "mse":
            return (outputs - y).square().mean(dim=(1, 2))
        return auc(outputs[..., 0], y[..., 0])

    def _keep_best(self, y: Tensor) -> None:
        batch = self._points.shape[0]
        if self._metrics:
            metrics = torch.stack(self._metrics)  # [fits, B]
            self._best = (-metrics if self.tuning_metric == "mse" else metrics).argmax(dim=0)
        else:
            self._best = torch.full((batch,), self.iters)
        self._best = self._best.to(self._points.device)
        # M_b is the AGOP of fit b - 1; the identity has no direction, so fit 0 uses its own.
        depth = self._best.clamp(min=1)
        direction = top_direction(self._points, self._steps, depth, self.center_grads)
        projections = (self._points @ direction.unsqueeze(-1)).squeeze(-1)  # [B, n]
        centred = y[..., 0] - y[..., 0].mean(dim=1, keepdim=True)
        sign = torch.where((projections * centred).sum(dim=1) < 0, -1.0, 1.0)
        direction = direction * sign.unsqueeze(-1)
        bandwidth = torch.stack([s.bandwidth for s in self._steps])  # [fits, B]
        kept_bandwidth = bandwidth.gather(0, self._best.unsqueeze(0))[0]
        self.direction_ = direction if self._batched else direction[0]
        self.best_iter_ = self._best if self._batched else int(self._best)
        self.bandwidth_ = kept_bandwidth if self._batched else float(kept_bandwidth)
        self.validation_ = [m if self._batched else float(m) for m in self._metrics]


def _problem(x_name: str, X: Tensor, y_name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Bring X to ``[B, N, D]`` and y to ``[B, N, C]`` in one floating-point dtype."""
    if X.ndim not in (2, 3) or not X.is_floating_point():
        raise ValueError(
            f"{x_name} must be floating point [N, D] or [B, N, D], came {tuple(X.shape)} of "
            f"{X.dtype}"
        )
    require_finite(x_name, X)
    batch, rows = (X.shape[0] if X.ndim == 3 else 1), X.shape[-2]
    y = torch.as_tensor(y, device=X.device)
    if y.ndim == 1:
        y = y.unsqueeze(-1)
    if y.ndim == 2 and y.shape[0] == rows:
        y = y.expand(batch, *y.shape)
    if y.ndim != 3 or y.shape[:2] != (batch, rows):
        raise ValueError(
            f"{y_name} must be [{rows}], [{rows}, C] or [{batch}, {rows}, C] for {x_name} of shape "
            f"{tuple(X.shape)}, came {tuple(y.shape)}"
        )
    dtype = torch.float64 if X.dtype == torch.float64 else torch.float32
    X = X if X.ndim == 3 else X.unsqueeze(0)
    require_finite(y_name, y.to(dtype))
    return X.detach().to(dtype), y.detach().to(dtype)
