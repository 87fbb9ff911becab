"""How good outputs are: area under the ROC curve, accuracy, mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("auc", "accuracy", "mse")


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve per row of ``[B, N]``, ties counted half (Mann-Whitney).

    Raises:
        ValueError: a row of ``labels`` (positive above 0.5) holds one class only.
    """
    from scipy.stats import rankdata

    positive = (labels > 0.5).double().cpu()
    ranks = torch.from_numpy(rankdata(scores.cpu().numpy(), axis=-1))
    count = positive.sum(dim=-1)
    other = positive.shape[-1] - count
    if not bool(((count > 0) & (other > 0)).all()):
        raise ValueError(
            "AUC needs both classes among the labels it is measured on; give rows of both, or "
            "choose 'mse'"
        )
    return ((ranks * positive).sum(dim=-1) - count * (count + 1) / 2) / (count * other)


def score(metric: str, outputs: Tensor, y: Tensor, sizes: Tensor | None = None) -> Tensor:
    """``metric`` per problem for outputs and labels ``[B, N, C]``, the mean over outputs, ``[B]``.

    Accuracy is the share of entries on the right side of 0.5 for one output, and of rows whose
    largest output is the largest label for several. ``sizes``: rows of each problem that count.
    """
    if sizes is not None and bool((sizes < y.shape[1]).any()):
        cut = [(outputs[b : b + 1, :s], y[b : b + 1, :s]) for b, s in enumerate(sizes.tolist())]
        return torch.cat([score(metric, o, t) for o, t in cut])
    if metric == "mse":
        return (outputs - y).square().mean(dim=(1, 2))
    if metric == "auc":
        return auc(outputs.mT, y.mT).mean(dim=1)
    if outputs.shape[2] == 1:
        right = (outputs > 0.5) == (y > 0.5)
    else:
        right = (outputs.argmax(dim=2) == y.argmax(dim=2)).unsqueeze(-1)
    return right.double().mean(dim=(1, 2))


def better(metric: str, values: Tensor) -> Tensor:
    """``values`` turned so that larger is better."""
    return -values if metric == "mse" else values
