"""The Recursive Feature Machine: Laplace-kernel ridge regression, average gradient outer product
(AGOP), repeat (Radhakrishnan et al., Science 2024, arXiv 2212.13881).

This file checks, plans and collects; `gram`, `feature` and `streamed` hold the three ways to
compute the same machine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..ops import backends_of
from ..support.progress import Ticker
from ..support.tensors import as_tensor, require_finite
from .collection import Collection
from .gram import Operations
from .grid import Grid, grid_settings
from .metrics import METRICS, score
from .parts import fit_parts
from .plan import plan
from .problem import Problems, problems, require_trainable
from .settings import Options, Setting
from .solve import warn_of_raised_ridges
from .spectrum import Directions

BANDWIDTH_MODES = ("median", "constant")
NORMALIZATIONS = ("none", "max")
TUNING_METRICS = ("mse", "auc")
BACKENDS = ("auto", *backends_of("laplace"))
# What of a machine is not told of its results: how they were computed.
_HOW = ("backend", "regime", "memory_budget")


@dataclass(eq=False, repr=False)
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
        tuning_metric: ``"mse"`` or ``"auc"`` (binary labels): what picks the best fit when
            validation rows are given; earlier fits win ties.
        backend: see `expertsteer.ops`.
        regime: ``"auto"`` (see `rfm.plan`), or ``"gram"``, ``"feature"``, ``"streamed"``: three
            ways to compute the same machine.
        memory_budget: bytes that a fit may use beside its data; half of the memory by default.

    Attributes:
        direction_: ``[D]`` or ``[B, D]``, the top eigenvector of the AGOP that the best fit used as
            its metric (of the first fit's own AGOP when that fit is best), unit norm, its sign
            such that projections correlate with the first output.
        best_iter_: int or ``[B]``, the fit that was kept: the best on validation rows, else the
            last.
        validation_: list of the metric per fit, each a float or ``[B]``; empty without rows.
        bandwidth_: the kept fit's bandwidth, float or ``[B]``.
        ridge_: ``[iters + 1]`` or ``[iters + 1, B]``, the ridge that each fit took: ``reg``, or
            more where the kernel matrix was not positive definite at it (a warning says so too).
        plan_: the `rfm.Plan` that was followed.
        grid_: after `fit_grid`, the `rfm.grid.Grid` with every setting's figures.

    Computes in float64 for float64 input and in float32 otherwise, and keeps a centred copy of X.
    """

    bandwidth: float = 3.0
    bandwidth_mode: str = "median"
    reg: float = 0.1
    iters: int = 3
    center_grads: bool = False
    normalize: str = "none"
    tuning_metric: str = "mse"
    backend: str = "auto"
    regime: str = "auto"
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("bandwidth", "reg"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, came {getattr(self, name)}")
        if self.iters < 1:
            raise ValueError(f"iters must be at least 1, came {self.iters}")
        for name, choices in (
            ("bandwidth_mode", BANDWIDTH_MODES),
            ("normalize", NORMALIZATIONS),
            ("tuning_metric", TUNING_METRICS),
            ("backend", BACKENDS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, came {getattr(self, name)!r}")
        plan(2, 1, regime=self.regime, memory_budget=self.memory_budget or 1 << 40)  # checks both

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that decide the result, for provenance."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _HOW}

    def unfitted(self) -> RFM:
        """A new machine with the same arguments."""
        return replace(self)

    def fit(
        self,
        X: Tensor,
        y: Tensor,
        X_val: Tensor | None = None,
        y_val: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
        val_sizes: Tensor | None = None,
    ) -> RFM:
        """Fit on ``X [N, D]`` or ``[B, N, D]`` and ``y [N]``, ``[N, C]`` or ``[B, N, C]``.

        Validation rows (same layout, own N) decide which fit is kept, per problem. ``sizes`` and
        ``val_sizes``, ``[B]`` integers, are for problems of different N: rows beyond them are
        padding and never looked at.

        Raises:
            ValueError: shapes that do not match, fewer than two rows, labels that are all equal,
                non-finite entries, all points equal, a kernel matrix that no ridge makes positive
                definite, a plan that does not fit the memory budget.
        """
        setting = Setting(self.bandwidth, self.reg, self.center_grads)
        given, held = self._given(X, y, X_val, y_val, sizes, val_sizes)
        self._fit(given, held, (setting,), self.tuning_metric)
        vars(self).pop("grid_", None)
        return self

    def fit_grid(
        self,
        X: Tensor,
        y: Tensor,
        X_val: Tensor,
        y_val: Tensor,
        *,
        bandwidth: tuple[float, ...] = (1.0, 10.0, 100.0),
        reg: tuple[float, ...] | None = None,
        center_grads: tuple[bool, ...] = (False, True),
        select: str = "auc",
        sizes: Tensor | None = None,
        val_sizes: Tensor | None = None,
    ) -> RFM:
        """Fit every combination and keep, per problem, the one best on the validation rows.

        All combinations of a problem share its Gram matrix and median distance.

        Args:
            bandwidth, reg, center_grads: the values to combine; ``reg`` defaults to this machine's.
            select: ``"auc"`` or ``"mse"``, what picks both the fit of each combination and the
                combination; the earlier one wins ties.

        Returns:
            This machine, fitted with the chosen combinations; ``grid_`` holds all figures.
        """
        if X_val is None or y_val is None:
            raise ValueError("fit_grid needs X_val and y_val: the grid is judged on them")
        if select not in TUNING_METRICS:
            raise ValueError(f"select must be one of {TUNING_METRICS}, came {select!r}")
        settings = grid_settings(bandwidth, (self.reg,) if reg is None else reg, center_grads)
        given, held = self._given(X, y, X_val, y_val, sizes, val_sizes)
        self._fit(given, held, settings, select)
        self.grid_ = Grid(settings, select, self._fitted.grid_values, self._fitted.chosen)
        return self

    def predict(self, X: Tensor) -> Tensor:
        """Outputs of the kept fit, ``[N, C]`` or ``[B, N, C]`` (``[N]`` for a 1-d ``y`` in fit)."""
        outputs = self._outputs(X)
        outputs = outputs.squeeze(-1) if self._y_was_vector else outputs
        return outputs if self._batched else outputs[0]

    def score(
        self, X: Tensor, y: Tensor, metric: str = "auc", sizes: Tensor | None = None
    ) -> float | Tensor:
        """How well the kept fit predicts ``y``, a float or ``[B]``, the mean over outputs.

        Args:
            metric: ``"auc"``, ``"accuracy"`` (threshold 0.5 for one output, the largest of
                several) or ``"mse"``.
        """
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, came {metric!r}")
        given = problems("X", X, "y", y, sizes)
        outputs = self._outputs(given.X if self._batched else given.X[0])
        if given.y.shape != outputs.shape:
            raise ValueError(
                f"y must have {outputs.shape[2]} outputs as in fit, came {given.y.shape[2]}"
            )
        values = score(metric, outputs, given.y, given.sizes)
        return values if self._batched else float(values[0])

    def directions(self, k: int = 1) -> Directions:
        """The k leading eigenvectors of the kept metric, with eigenvalues and explained shares.

        Signs as for ``direction_``. At most ``min(N, D)`` exist; asking for more is an error.
        """
        self._require_fitted()
        most = self._most
        if not isinstance(k, int) or not 1 <= k <= most:
            raise ValueError(f"k must be an integer between 1 and min(N, D) = {most}, came {k}")
        found = self._fitted.directions(k)
        return found if self._batched else Directions(*(t[0] for t in found))

    def _given(self, X, y, X_val, y_val, sizes, val_sizes) -> tuple[Problems, Problems | None]:
        """Checked training and validation rows; remembers the layout that results take."""
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together")
        given, held = problems("X", X, "y", y, sizes), None
        require_trainable(given)
        if X_val is not None:
            held = problems("X_val", X_val, "y_val", y_val, val_sizes)
            matches = (
                held.X.shape[::2] == given.X.shape[::2] and held.y.shape[2] == given.y.shape[2]
            )
            if not matches or not held.X.shape[1]:
                raise ValueError(
                    f"X_val {tuple(held.X.shape)} and y_val {tuple(held.y.shape)} must match X "
                    f"{tuple(given.X.shape)} and y {tuple(given.y.shape)} in problems, width and "
                    "outputs, and hold at least one row"
                )
            held = Problems(held.X.to(given.X.dtype), held.y.to(given.y.dtype), held.sizes)
        self._batched, self._y_was_vector = X.ndim == 3, as_tensor(y).ndim == 1
        return given, held

    def _fit(
        self, given: Problems, held: Problems | None, settings: tuple[Setting, ...], tuning: str
    ) -> None:
        batch, n, d = given.X.shape
        self.plan_ = plan(
            n,
            d,
            outputs=given.y.shape[2],
            problems=batch,
            settings=len(settings),
            iters=self.iters,
            normalize=self.normalize,
            dtype=given.X.dtype,
            device=given.X.device,
            memory_budget=self.memory_budget,
            regime=self.regime,
        )
        operations = Operations(self.backend, given.X)
        fitted = Collection(batch, self.plan_.room(batch))
        at_once = self.plan_.problems_at_once
        fits = batch * len(settings) * (self.iters + 1)
        with Ticker(fits, f"RFM, {batch} problems") as tick:
            options = Options(self.bandwidth_mode, self.iters, self.normalize, tuning, tick)
            for first in range(0, batch, at_once):
                chunk = slice(first, min(first + at_once, batch))
                shared = settings, options, operations, self.plan_
                for part in fit_parts(chunk, given, held, *shared):
                    fitted.add(part)
        warn_of_raised_ridges(fitted.asked, fitted.ridges)
        self._fitted, self._width, self._most = fitted, d, min(n, d)
        self._publish()

    def _publish(self) -> None:
        fitted = self._fitted
        best, bandwidth, metrics = fitted.best, fitted.bandwidth, fitted.metrics
        self.direction_ = fitted.direction if self._batched else fitted.direction[0]
        self.best_iter_ = best if self._batched else int(best)
        self.bandwidth_ = bandwidth if self._batched else float(bandwidth)
        self.validation_ = [m if self._batched else float(m) for m in metrics]
        self.ridge_ = fitted.ridges if self._batched else fitted.ridges[:, 0]

    def _outputs(self, X: Tensor) -> Tensor:
        """``[B, N, C]`` for new rows as a caller gives them."""
        self._require_fitted()
        expected = (self._fitted.batch,) if self._batched else ()
        if X.ndim != len(expected) + 2 or X.shape[:-2] != expected:
            raise ValueError(f"X must be [{'B, ' * self._batched}N, D] as in fit, came {X.shape}")
        if X.shape[-1] != self._width:
            raise ValueError(f"X must have {self._width} columns, came {X.shape[-1]}")
        require_finite("X", X)
        return self._fitted.predict(X if self._batched else X.unsqueeze(0))

    def _require_fitted(self) -> None:
        if not hasattr(self, "direction_"):
            raise ValueError("this RFM is not fitted; call fit(X, y) first")
