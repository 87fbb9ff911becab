"""The Recursive Feature Machine as a scikit-learn classifier: pipelines, clones, grid searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "expertsteer.sklearn needs scikit-learn 1.6 or newer: pip install 'expertsteer[sklearn]'"
    ) from error

from .rfm import RFM


@dataclass(eq=False, repr=False)
class RFMClassifier(ClassifierMixin, BaseEstimator):
    """Classifier on an `expertsteer.RFM`; two classes are one output, more are one each.

    Args:
        bandwidth, bandwidth_mode, reg, iters, center_grads, normalize, tuning_metric, backend,
        regime, memory_budget: as in `expertsteer.RFM`.
        validation_fraction: share of the rows, stratified, that chooses which fit is kept; with 0
            it is the last one and all rows are fitted on.
        random_state: of that split.

    Attributes:
        classes_: the labels, sorted.
        rfm_: the fitted `expertsteer.RFM`.
        direction_: ``[n_features_in_]``, unit norm; projections grow towards ``classes_[1]`` (the
            first class, where there are more than two).
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
    validation_fraction: float = 0.0
    random_state: Any = None

    def fit(self, X, y):
        """Fit on ``X [N, D]`` (float32 stays, anything else becomes float64) and labels ``[N]``."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must be a share in [0, 1), came {self.validation_fraction}"
            )
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "y holds one class only; a classifier needs rows of at least two classes"
            )
        held = ()
        if self.validation_fraction:
            X, X_val, codes, held_codes = train_test_split(
                X,
                codes,
                test_size=self.validation_fraction,
                random_state=self.random_state,
                stratify=codes,
            )
            held = (torch.from_numpy(np.array(X_val)), self._targets(held_codes))
        arguments = self.get_params()
        for name in ("validation_fraction", "random_state"):
            del arguments[name]
        self.rfm_ = RFM(**arguments).fit(torch.from_numpy(np.array(X)), self._targets(codes), *held)
        self.direction_ = self.rfm_.direction_.numpy()
        self.n_iter_ = self.rfm_.best_iter_ + 1
        return self

    def _targets(self, codes):
        codes = torch.from_numpy(np.asarray(codes))
        if len(self.classes_) == 2:
            return codes.double()
        return torch.nn.functional.one_hot(codes, len(self.classes_)).double()

    def decision_function(self, X):
        """``[N]``, above 0 for ``classes_[1]``; ``[N, classes]`` for more than two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        outputs = self.rfm_.predict(torch.from_numpy(np.array(X))).double().numpy()
        return outputs - 0.5 if len(self.classes_) == 2 else outputs

    def predict(self, X):
        """Labels ``[N]``."""
        values = self.decision_function(X)
        return self.classes_[values.argmax(axis=1) if values.ndim == 2 else (values > 0) * 1]
