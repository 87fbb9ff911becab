"""Step 2, first part: how much each expert layer and each target layer know of one another.

Three estimators, each for all pairs of layers at once. They read one layer at a time, so the
states may lie on disk; what each keeps in memory is said in `mutual_information`.
"""

from __future__ import annotations

import math
import warnings
from typing import overload

from torch import Tensor

from ._gaussian import Gaussian, choose_components
from ._layers import Layers, LayerSource, paired
from ._sampling import KEPT, against_null, interval, require_draws
from .artifacts import HiddenStates, MutualInformation

ESTIMATORS = ("gaussian",)


@overload
def mutual_information(
    x: Tensor | HiddenStates | LayerSource,
    y: Tensor | HiddenStates | LayerSource,
    estimator: str = ...,
    *,
    null: None = ...,
    bootstrap: None = ...,
) -> Tensor: ...
@overload
def mutual_information(
    x: Tensor | HiddenStates | LayerSource,
    y: Tensor | HiddenStates | LayerSource,
    estimator: str = ...,
    *,
    null: int | None = ...,
    bootstrap: int | None = ...,
) -> MutualInformation: ...


def mutual_information(
    x,
    y,
    estimator: str = "gaussian",
    *,
    components: int | None = None,
    null: int | None = None,
    bootstrap: int | None = None,
    seed: int = 0,
    backend: str = "auto",
):
    """Mutual information between every layer of ``x`` and every layer of ``y``.

    Args:
        x: ``[L_x, N, d_x]``; y: ``[L_y, N, d_y]``, rows paired: tensors, captures, or anything
            that gives a layer's states ``[N, d]`` by index (`LayerSource`), such as
            `HiddenStates.open`, which reads each layer from disk when its turn comes.
        estimator: ``"gaussian"``: exact for jointly Gaussian states, else a lower bound on the
            information of the components in practice.
        components: principal components r kept per layer; by default 32, less where the widths or
            the number of rows do not allow it.
        null: permutations of the rows of ``y`` for the floor that chance alone would give.
        bootstrap: draws of 80 % of the examples, without replacement, for a 95 % interval.
        seed: of the split into halves, of the permutations and of the draws.
        backend: see `expertsteer.ops`.

    Returns:
        ``[L_x, L_y]`` float64 in nats, or with ``null`` or ``bootstrap`` a `MutualInformation`
        that holds floors and intervals too. Estimates are unbiased for Gaussian states, so they
        may fall below zero.

    Where a half of the rows holds fewer than 2 r + 2 of them the unbiased Gaussian estimate does
    not exist. The correlations are then shrunk towards zero by the share that their sampling
    variance has in them (Schaefer and Strimmer 2005), a ``UserWarning`` names that share and
    `MutualInformation.shrinkage` holds it for each pair. Shrunk estimates are too low.

    Memory: one layer's states and ``(L_x + L_y) N r`` codes in float64.

    Raises:
        ValueError: shapes that do not match, non-finite entries, more components than the width,
            too few rows, a constant layer.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, came {estimator!r}")
    require_draws("null", null, 2, "permutations")
    require_draws("bootstrap", bootstrap, 20, "draws")
    x, y = Layers("x", x), Layers("y", y)
    examples = paired(x, y)
    r = choose_components(components, min(x.shape.width, y.shape.width), examples)
    fitted = Gaussian(x, y, r, seed, backend)
    if bootstrap is not None:
        _require_rows_for_draws(examples, r)
    nats = fitted.estimate()
    shrinkage = fitted.shrinkage
    if bool((shrinkage > 0).any()):
        warnings.warn(
            f"{examples} examples are too few for an unbiased estimate with {r} components: "
            f"correlations were shrunk by {float(shrinkage.mean()):.2f} on average and the "
            f"information is underestimated; {4 * r + 4} examples need no shrinkage",
            UserWarning,
            stacklevel=2,
        )
    if null is None and bootstrap is None:
        return nats
    kept = {"estimator": estimator, "examples": examples, "components": r}
    if null is not None:
        kept |= against_null(fitted, nats, null, seed)
    if bootstrap is not None:
        kept |= interval(fitted, nats, bootstrap, seed)
    return MutualInformation(nats=nats, shrinkage=shrinkage, **kept)


def _require_rows_for_draws(examples: int, r: int) -> None:
    needed = 2 * math.ceil((2 * r + 2) / KEPT)
    if examples < needed:
        raise ValueError(
            f"an interval with {r} components needs at least {needed} examples, came {examples}; "
            "give more, or ask for fewer components"
        )
