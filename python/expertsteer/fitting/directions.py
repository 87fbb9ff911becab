"""Unit directions that tell the two labels apart, by method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rfm import RFM, auc


def fitted_directions(
    codes: Tensor, labels: Tensor, train: Tensor, held: Tensor, method: str, rfm: RFM | None
) -> tuple[Tensor, dict[str, Any]]:
    """Unit directions ``[R, d_T]`` and the figures measured on the way, a list entry per pair."""
    y = labels.to(codes.dtype)
    if method == "rfm":
        machine = rfm.unfitted() if rfm else RFM()
        if not len(held):
            return machine.fit(codes, y).direction_, {"iteration": machine.best_iter_.tolist()}
        machine.fit(codes[:, train], y[train], codes[:, held], y[held])
        scores = machine.predict(codes[:, held])
        measured = auc(scores, y[held].expand(len(codes), -1))
        return machine.direction_, {
            "iteration": machine.best_iter_.tolist(),
            "validation_auc": measured.tolist(),
        }
    directions = torch.stack([simple_direction(x, labels, method) for x in codes])
    return directions, {}


def simple_direction(x: Tensor, labels: Tensor, method: str) -> Tensor:
    centred = x - x.mean(dim=0)
    if not bool((centred != 0).any()):
        raise ValueError("the states of all examples are equal, so there is no direction to find")
    if method == "mean_difference":
        direction = x[labels == 1].mean(dim=0) - x[labels == 0].mean(dim=0)
    elif method == "pca":
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    else:
        direction = _logistic(centred, labels)
    norm = direction.norm()
    if not norm > 0:
        raise ValueError(f"method {method!r} finds no direction: the two labels' states coincide")
    correlation = (centred @ direction) @ (labels - labels.double().mean()).to(x.dtype)
    return direction / (norm if correlation >= 0 else -norm)


def _logistic(centred: Tensor, labels: Tensor) -> Tensor:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ValueError(
            "method='logistic' needs scikit-learn: pip install 'expertsteer[sklearn]'"
        ) from error
    scale = centred.square().mean().sqrt()  # the solver's regularisation assumes unit scale
    probe = LogisticRegression(max_iter=2000).fit(
        (centred / scale).cpu().numpy(), labels.cpu().numpy()
    )
    return torch.from_numpy(probe.coef_[0]).to(centred)
