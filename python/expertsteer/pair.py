"""Step 2: how much each expert layer and each target layer know of one another, and who is paired.

The Gaussian estimator projects every layer to r principal components, whitens them and takes one
log-determinant per pair. The projection is fitted on one half of the rows and the information
estimated on the other, both ways round: components chosen on the rows they are judged by look more
correlated than they are.
"""

from __future__ import annotations

from typing import overload

import torch
from scipy.special import digamma
from torch import Tensor

from . import ops
from ._progress import progress
from .artifacts import LayerPair, LayerPairing, MutualInformation, require_finite

ESTIMATORS = ("gaussian",)
RULES = ("lowest", "highest", "random")


@overload
def mutual_information(
    x: Tensor, y: Tensor, estimator: str = ..., *, null: None = ...
) -> Tensor: ...
@overload
def mutual_information(
    x: Tensor, y: Tensor, estimator: str = ..., *, null: int
) -> MutualInformation: ...


def mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: str = "gaussian",
    *,
    components: int | None = None,
    null: int | None = None,
    seed: int = 0,
    backend: str = "auto",
):
    """Mutual information between every layer of ``x`` and every layer of ``y``.

    Args:
        x: ``[L_x, N, d_x]``; y: ``[L_y, N, d_y]``, rows paired.
        estimator: ``"gaussian"``: exact for jointly Gaussian states, else a lower bound on the
            information of the components in practice.
        components: principal components r kept per layer; by default 32, less where the widths or
            the number of rows do not allow it.
        null: permutations of the rows of ``y`` for the floor that chance alone would give.
        seed: of the split into halves and of the permutations.
        backend: see `expertsteer.ops`.

    Returns:
        ``[L_x, L_y]`` float64 in nats, or with ``null`` a `MutualInformation` that holds the
        floors too. Estimates are unbiased for Gaussian states, so they may fall below zero.

    Raises:
        ValueError: shapes that do not match, non-finite entries, more components than the width,
            too few rows, a constant layer.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, came {estimator!r}")
    if x.ndim != 3 or y.ndim != 3 or x.shape[1] != y.shape[1]:
        raise ValueError(
            "x and y must be [layers, N, width] over the same N examples, came "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.detach(), y.detach()
    require_finite("x", x)
    require_finite("y", y)
    r = _components(components, x, y)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    halves = order.tensor_split(2)
    projected = [
        [_project(states, fit, held, r) for states in (x, y)]
        for fit, held in (halves, halves[::-1])
    ]

    def estimate(shuffle: list[Tensor] | None = None) -> Tensor:
        total = torch.zeros(x.shape[0], y.shape[0], dtype=torch.float64)
        for fold, (code_x, code_y) in enumerate(projected):
            code_y = code_y if shuffle is None else code_y[:, shuffle[fold]]
            raw = ops.gaussian_information(code_x, code_y, backend=backend)
            total += raw - gaussian_bias(code_x.shape[1], r, r)
        return total / len(projected)

    nats = estimate()
    if null is None:
        return nats
    return _against_null(nats, estimate, null, [h.numel() for h in halves[::-1]], seed)


def gaussian_bias(n: int, r_x: int, r_y: int) -> float:
    """Expected excess of the plug-in Gaussian information over the truth, in nats.

    ``1/2 [f(r_x) + f(r_y) - f(r_x + r_y)]`` with ``f(d) = sum_{i<d} psi((n - 1 - i) / 2)``, from
    the expected log-determinant of a Wishart matrix with n - 1 degrees of freedom. Exact for
    Gaussian samples at every value of the information.
    """

    def f(d: int) -> float:
        return sum(float(digamma((n - 1 - i) / 2)) for i in range(d))

    return 0.5 * (f(r_x) + f(r_y) - f(r_x + r_y))


def pair_layers(
    information: Tensor | MutualInformation,
    k: int = 4,
    rule: str = "lowest",
    *,
    expert_layers: tuple[int, ...] | None = None,
    target_layers: tuple[int, ...] | None = None,
    seed: int = 0,
) -> LayerPairing:
    """Choose k (expert layer, target layer) pairs, at most one per target layer.

    ``"lowest"`` (the paper) and ``"highest"`` walk over all pairs in order of information and take
    every pair whose target layer is still free; ties go to the lower expert layer, then to the
    lower target layer. ``"random"`` draws target layers and partners uniformly, as a control.

    Args:
        information: ``[L_E, L_T]`` in nats.
        k: number of pairs.
        expert_layers, target_layers: the layer each row and column stands for, by default 0, 1, ...

    Raises:
        ValueError: k outside 1..L_T, an unknown rule, labels of the wrong length.
    """
    matrix = information.nats if isinstance(information, MutualInformation) else information
    if matrix.ndim != 2:
        raise ValueError(f"information must be [L_E, L_T], came {tuple(matrix.shape)}")
    require_finite("information", matrix)
    rows, columns = matrix.shape
    if not isinstance(k, int) or not 1 <= k <= columns:
        raise ValueError(
            f"k must be an integer between 1 and the number of target layers, {columns}; came {k}"
        )
    expert_layers = _labels("expert_layers", expert_layers, rows)
    target_layers = _labels("target_layers", target_layers, columns)
    chosen = _choose(matrix, k, rule, seed)
    pairs = [LayerPair(expert_layers[e], target_layers[t], float(matrix[e, t])) for e, t in chosen]
    return LayerPairing(tuple(pairs), rule=rule, matrix=matrix)


def _choose(matrix: Tensor, k: int, rule: str, seed: int) -> list[tuple[int, int]]:
    rows, columns = matrix.shape
    if rule == "random":
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randperm(columns, generator=generator)[:k].tolist()
        return [(int(torch.randint(rows, (), generator=generator)), t) for t in targets]
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, came {rule!r}")
    # A stable sort of the flattened matrix is what breaks ties by expert, then target layer.
    order = matrix.flatten().argsort(descending=rule == "highest", stable=True).tolist()
    chosen: dict[int, int] = {}
    for flat in order:
        expert, target = divmod(flat, columns)
        if target not in chosen:
            chosen[target] = expert
        if len(chosen) == k:
            break
    return [(expert, target) for target, expert in chosen.items()]


def _labels(name: str, layers: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if layers is None else tuple(layers)
    if len(layers) != count or len(set(layers)) < count:
        raise ValueError(f"{name} must name {count} different layers, came {layers}")
    return layers


def _components(components: int | None, x: Tensor, y: Tensor) -> int:
    width, rows = min(x.shape[2], y.shape[2]), x.shape[1]
    most = (rows // 2 - 2) // 2  # each half must outnumber both blocks of components together
    if most < 1:
        raise ValueError(f"mutual information needs at least 8 examples, came {rows}")
    if components is None:
        # Four rows of a half per estimated component keep the variance small.
        return max(1, min(32, width, rows // 8, most))
    if not isinstance(components, int) or not 1 <= components <= width:
        raise ValueError(
            f"components must be an integer between 1 and the width {width}, came {components}"
        )
    if components > most:
        raise ValueError(
            f"{components} components need at least {4 * components + 4} examples, came {rows}; "
            f"give more examples or ask for at most {most} components"
        )
    return components


def _project(states: Tensor, fit: Tensor, held: Tensor, r: int) -> Tensor:
    """Rows ``held`` of ``[L, N, d]`` in the r principal components of rows ``fit``, float64."""
    codes = []
    for layer in states:
        rows = layer[fit].double()
        mean = rows.mean(dim=0)
        rows = rows - mean
        if rows.shape[0] < rows.shape[1]:  # never a d x d decomposition when N is smaller
            values, vectors = torch.linalg.eigh(rows @ rows.mT)
            basis = rows.mT @ vectors[:, -r:] / values[-r:].clamp(min=1e-300).sqrt()
        else:
            values, vectors = torch.linalg.eigh(rows.mT @ rows)
            basis = vectors[:, -r:]
        codes.append((layer[held].double() - mean) @ basis)
    return torch.stack(codes)


def _against_null(nats, estimate, permutations: int, sizes: list[int], seed: int):
    if not isinstance(permutations, int) or permutations < 2:
        raise ValueError(f"null must be at least 2 permutations, came {permutations}")
    generator = torch.Generator().manual_seed(seed + 1)
    draws = []
    for _ in progress(range(permutations), "permutation null"):
        draws.append(estimate([torch.randperm(n, generator=generator) for n in sizes]))
    null = torch.stack(draws)  # [permutations, L_x, L_y]
    spread = null.std(dim=0).clamp(min=torch.finfo(null.dtype).tiny)
    return MutualInformation(
        nats=nats,
        floor=null.quantile(0.95, dim=0),
        z_score=(nats - null.mean(dim=0)) / spread,
        permutations=permutations,
    )
