"""Step 2, first part: how much each expert layer and each target layer know of one another.

Three estimators, each for all pairs of layers at once. They read one layer at a time, so the
states may lie on disk; what each keeps in memory is said in `mutual_information`.
"""

from __future__ import annotations

import math
from typing import overload

from torch import Tensor

from ..states.states import HiddenStates, StoredStates
from ..support.numbers import fixed
from ..support.telling import tell
from . import gaussian as _gaussian
from . import ksg as _ksg
from . import renyi as _renyi
from .gaussian import Gaussian
from .ksg import Ksg
from .layer_pairs import MutualInformation
from .layers import Layers, LayerSource, paired
from .projection import Wanted
from .renyi import Renyi2
from .sampling import KEPT, against_null, interval, require_draws

ESTIMATORS = ("gaussian", "ksg", "renyi2")


@overload
def mutual_information(
    x: Tensor | HiddenStates | StoredStates | LayerSource,
    y: Tensor | HiddenStates | StoredStates | LayerSource,
    estimator: str = ...,
    *,
    null: None = ...,
    bootstrap: None = ...,
) -> Tensor: ...
@overload
def mutual_information(
    x: Tensor | HiddenStates | StoredStates | LayerSource,
    y: Tensor | HiddenStates | StoredStates | LayerSource,
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
    k: int = 3,
    variant: int = 1,
    max_components: int = _ksg.MOST_COMPONENTS,
    memory: float = 2.0,
):
    """Mutual information between every layer of ``x`` and every layer of ``y``.

    Args:
        x: ``[L_x, N, d_x]``; y: ``[L_y, N, d_y]``, rows paired: tensors, captures, or anything
            that gives a layer's states ``[N, d]`` by index (``LayerSource``), such as
            `HiddenStates.open`, which reads each layer from disk when its turn comes.
        estimator: ``"gaussian"``: exact for jointly Gaussian states, else a lower bound on the
            information of the components in practice; sees linear dependence only. ``"ksg"``:
            nearest neighbours (Kraskov, Stoegbauer and Grassberger 2004), any dependence, a few
            components; too low where much information meets few examples. ``"renyi2"``: the
            matrix-based entropy of order 2 (Sanchez Giraldo, Rao and Principe 2015) of Gaussian
            kernels at the median distance of each layer; a measure of dependence of its own, not
            an estimate of Shannon's information, and not zero for independent layers (see
            ``null``).
        components: principal components r kept per layer; by default 32 (``"gaussian"``) or 4
            (``"ksg"``), less where the widths or the number of rows do not allow it, or where a
            layer varies in fewer directions (duplicated rows): a ``UserWarning`` names them.
            ``"renyi2"`` takes the states whole.
        null: permutations of the rows of ``y`` for the floor that chance alone would give.
        bootstrap: draws of 80 % of the examples, without replacement, for a 95 % interval.
        seed: of the split into halves, of the permutations and of the draws.
        backend: see `expertsteer.ops`.
        k, variant, max_components: of ``"ksg"``: neighbours, formula 1 or 2 of the paper, and the
            number of components past which it refuses.
        memory: GiB that the kernel matrices of ``"renyi2"`` may take.

    Returns:
        ``[L_x, L_y]`` float64 in nats, or with ``null`` or ``bootstrap`` a `MutualInformation`
        that holds floors and intervals too. Gaussian and nearest-neighbour estimates scatter
        about zero for independent layers, so they may be negative.

    Where a half of the rows holds fewer than 2 r + 2 of them the unbiased Gaussian estimate does
    not exist. The correlations are then shrunk towards zero by the share that their sampling
    variance has in them (Schaefer and Strimmer 2005), a ``UserWarning`` names that share and
    `MutualInformation.shrinkage` holds it for each pair. Shrunk estimates are too low.

    Memory: one layer's states, with ``"gaussian"`` and ``"ksg"`` ``(L_x + L_y) N r`` codes and
    256 MiB for neighbours, with ``"renyi2"`` ``4 (L_x + L_y) N^2`` bytes. Never all states.

    Raises:
        ValueError: shapes that do not match, non-finite entries, more components than the width,
            too few rows, a constant layer, a layer that varies in fewer directions than the
            components asked for, an option of another estimator.
    """
    options = dict(locals())  # the arguments, which `estimated` names once more
    made = estimated(options.pop("x"), options.pop("y"), **options)
    return made.nats if null is None and bootstrap is None else made


def estimated(
    x,
    y,
    estimator: str = "gaussian",
    *,
    components: int | None = None,
    null: int | None = None,
    bootstrap: int | None = None,
    seed: int = 0,
    backend: str = "auto",
    k: int = 3,
    variant: int = 1,
    max_components: int = _ksg.MOST_COMPONENTS,
    memory: float = 2.0,
) -> MutualInformation:
    """`mutual_information`, always with what it was made from."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, came {estimator!r}")
    if estimator != "ksg" and (k, variant, max_components) != (3, 1, _ksg.MOST_COMPONENTS):
        raise ValueError(
            f"k, variant and max_components belong to estimator='ksg', came {estimator!r}"
        )
    require_draws("null", null, 2, "permutations")
    require_draws("bootstrap", bootstrap, 20, "draws")
    x, y = Layers("x", x), Layers("y", y)
    examples = paired(x, y)
    width = min(x.shape.width, y.shape.width)
    asked = components is not None
    wanted = None
    if estimator == "gaussian":
        wanted = Wanted(_gaussian.choose_components(components, width, examples), asked)
        if bootstrap is not None:
            _require_rows_for_draws(examples, wanted.count)
        fitted = Gaussian(x, y, wanted, seed, backend)
    elif estimator == "ksg":
        chosen = _ksg.choose_components(components, max_components, width, examples, k)
        wanted = Wanted(chosen, asked)
        fitted = Ksg(x, y, wanted, k, variant, backend)
    else:
        _renyi.require_whole(components, backend)
        fitted = Renyi2(x, y, memory)
    components = None if wanted is None else wanted.count
    if wanted is not None and wanted.fewer:
        tell(
            f"{wanted.fewer}: the information is estimated with {components} components, and "
            "copies make it look larger than it is; remove duplicates, or leave the layer out"
        )
    nats = fitted.estimate()
    shrinkage = fitted.shrinkage if estimator == "gaussian" else None
    if shrinkage is not None and bool((shrinkage > 0).any()):
        _warn_of_shrinkage(shrinkage, examples, components)
    kept = {"estimator": estimator, "examples": examples, "components": components}
    if null is not None:
        kept |= against_null(fitted, nats, null, seed)
    if bootstrap is not None:
        kept |= interval(fitted, nats, bootstrap, seed)
    return MutualInformation(nats=nats, shrinkage=shrinkage, **kept)


def _warn_of_shrinkage(shrinkage: Tensor, examples: int, r: int) -> None:
    tell(
        f"{examples} examples are too few for an unbiased estimate with {r} components: "
        f"correlations were shrunk by {fixed(float(shrinkage.mean()))} on average and the "
        f"information is underestimated; {4 * r + 4} examples need no shrinkage"
    )


def _require_rows_for_draws(examples: int, r: int) -> None:
    needed = 2 * math.ceil((2 * r + 2) / KEPT)
    if examples < needed:
        raise ValueError(
            f"an interval with {r} components needs at least {needed} examples, came {examples}; "
            "give more, or ask for fewer components"
        )
