"""Step 2, second part: which expert layer is paired with which target layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..support.progress import progress
from ..support.tensors import require_finite
from .choice import Choice
from .layer_pairs import LayerPair, LayerPairing, MutualInformation

RULES = ("effect", "lowest", "highest", "random", "validated")
MEASURED = ("effect", "validated")  # those that want a function

Effect = Callable[[int, int], float]


def pair_layers(
    information: Tensor | MutualInformation,
    k: int = 4,
    rule: str = "lowest",
    *,
    expert_layers: Sequence[int] | None = None,
    target_layers: Sequence[int] | None = None,
    unique_experts: bool = False,
    skip_first: int = 0,
    skip_last: int = 0,
    expert_window: tuple[int, int] | None = None,
    target_window: tuple[int, int] | None = None,
    tolerance: float = 1e-9,
    effect: Effect | None = None,
    shortlist: int | Sequence[tuple[int, int]] | None = None,
    shortlist_by: str = "lowest",
    auc: Sequence[float] | None = None,
    seed: int = 0,
) -> LayerPairing:
    """Choose k (expert layer, target layer) pairs, at most one per target layer.

    ``"lowest"`` (the paper) and ``"highest"`` walk over all pairs in order of information and take
    every pair whose target layer is still free. ``"random"`` draws target layers and partners
    uniformly, as a control. ``"validated"`` measures ``effect`` on a shortlist by information and
    walks over that in order of falling effect. ``"effect"`` does the same on pairs that were
    shortlisted by what the expert can tell apart: `ExpertSteer` makes that list and measures.

    Near-ties: walking in order, values within ``tolerance`` of the first of them count as equal,
    and among equals the lower expert layer, then the lower target layer comes first. Pass a
    standard error (`MutualInformation.standard_error`) to let no difference below it decide.

    Args:
        information: ``[L_E, L_T]`` in nats.
        k: number of pairs.
        expert_layers, target_layers: the layer each row and column stands for, by default 0, 1, ...
        unique_experts: at most one pair per expert layer too. The k pairs are then chosen together,
            as the assignment whose total is the lowest (highest; for ``"validated"`` that of the
            effects is the highest); of totals within ``tolerance`` the lower layers, paired in
            order, win.
        skip_first, skip_last: rows and columns at either end that are never paired.
        expert_window, target_window: first and last layer (both included) that may be paired, by
            the names of ``expert_layers`` and ``target_layers``.
        tolerance: in nats (for ``"validated"`` in the unit of the effect).
        effect: ``effect(expert_layer, target_layer) -> float`` on held-out data, larger is better;
            needed by ``"validated"`` and ``"effect"`` alone and called once per pair of the
            shortlist.
        shortlist: how many pairs ``"validated"`` measures, by default ``3 k``; more where these
            hold fewer than k different target layers. Or the pairs themselves, by the names of
            their layers, as ``"effect"`` needs them.
        shortlist_by: ``"lowest"`` or ``"highest"`` information, for a number of pairs.
        auc: of every expert layer, how well it tells the classes apart on rows held out; kept
            with the pairing for ``"effect"``.
        seed: of ``"random"``.

    Raises:
        ValueError: k larger than the layers within the windows, an unknown rule, labels of the
            wrong length, an effect where none is used or none where one is needed, a shortlist
            with other layers or too few of them.
    """
    matrix = information.nats if isinstance(information, MutualInformation) else information
    if matrix.ndim != 2:
        raise ValueError(f"information must be [L_E, L_T], came {tuple(matrix.shape)}")
    require_finite("information", matrix)
    matrix = matrix.detach().double().cpu()
    expert_layers = _labels("expert_layers", expert_layers, matrix.shape[0])
    target_layers = _labels("target_layers", target_layers, matrix.shape[1])
    if auc is not None and len(auc) != len(expert_layers):
        raise ValueError(
            f"auc must hold one for each of the {len(expert_layers)} expert layers, came {len(auc)}"
        )
    _require_rule(rule, effect, shortlist, shortlist_by, tolerance)
    rows = _within("expert_window", expert_layers, expert_window, skip_first, skip_last)
    columns = _within("target_window", target_layers, target_window, skip_first, skip_last)
    _require_room(k, len(rows), len(columns), unique_experts)
    choice = Choice(matrix[rows][:, columns], k, unique_experts, tolerance)
    effects: dict[tuple[int, int], float] = {}
    if rule == "random":
        chosen = choice.at_random(seed)
    elif rule in MEASURED:
        if shortlist is None or isinstance(shortlist, int):
            listed = choice.shortlist(3 * k if shortlist is None else shortlist, shortlist_by)
        else:
            names = [expert_layers[r] for r in rows], [target_layers[c] for c in columns]
            listed = choice.named(shortlist, *names)
        for e, t in progress(listed, "held-out effects"):
            pair = expert_layers[rows[e]], target_layers[columns[t]]
            effects[pair] = _measured(effect, *pair)
        chosen = choice.largest(listed, list(effects.values()))
    else:
        chosen = choice.in_order(rule)
    made = information if isinstance(information, MutualInformation) else None
    placed = [(rows[e], columns[t]) for e, t in chosen]
    return LayerPairing(
        tuple(
            LayerPair(expert_layers[e], target_layers[t], float(matrix[e, t])) for e, t in placed
        ),
        rule=rule,
        matrix=matrix,
        expert_axis=expert_layers,
        target_axis=target_layers,
        floor=None if made is None else made.floor,
        effects=tuple((*pair, value) for pair, value in effects.items()),
        expert_auc=() if auc is None else tuple(auc),
        settings={
            "estimator": None if made is None else made.estimator,
            "k": k,
            "unique_experts": unique_experts,
            "tolerance": tolerance,
            "expert_window": [expert_layers[rows[0]], expert_layers[rows[-1]]],
            "target_window": [target_layers[columns[0]], target_layers[columns[-1]]],
        },
    )


def _measured(effect: Effect, expert: int, target: int) -> float:
    value = float(effect(expert, target))
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"effect must be finite, came {value} for layers {expert} and {target}")
    return value


def _labels(name: str, layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if layers is None else tuple(layers)
    if len(layers) != count or len(set(layers)) < count:
        raise ValueError(f"{name} must name {count} different layers, came {layers}")
    return layers


def _within(
    name: str,
    layers: tuple[int, ...],
    window: tuple[int, int] | None,
    skip_first: int,
    skip_last: int,
) -> list[int]:
    """Places of the layers that may be paired."""
    for skipped, count in (("skip_first", skip_first), ("skip_last", skip_last)):
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{skipped} must be a number of layers from 0 on, came {count}")
    if window is not None and len(window) != 2:
        raise ValueError(f"{name} must be (first, last), came {window}")
    first, last = (min(layers), max(layers)) if window is None else window
    places = range(skip_first, len(layers) - skip_last)
    places = [i for i in places if first <= layers[i] <= last]
    if not places:
        raise ValueError(
            f"{name} {window} with skip_first={skip_first} and skip_last={skip_last} leaves none "
            f"of the layers {layers}; widen it or skip fewer"
        )
    return places


def _require_rule(
    rule: str, effect: Effect | None, shortlist: Any, shortlist_by: str, tolerance: float
) -> None:
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, came {rule!r}")
    if (rule in MEASURED) != (effect is not None):
        raise ValueError(
            "effect must be given with rule='validated' or 'effect' and with no other: a function "
            "(expert_layer, target_layer) -> float measured on held-out data; came rule="
            f"{rule!r} and effect={effect!r}"
        )
    if rule == "effect" and (shortlist is None or isinstance(shortlist, int)):
        raise ValueError(
            "shortlist must list the (expert_layer, target_layer) pairs to measure with "
            f"rule='effect', came {shortlist!r}; ExpertSteer(rule='effect') makes that list"
        )
    if shortlist_by not in ("lowest", "highest"):
        raise ValueError(f"shortlist_by must be 'lowest' or 'highest', came {shortlist_by!r}")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a finite number from 0 on, came {tolerance}")


def _require_room(k: int, rows: int, columns: int, unique_experts: bool) -> None:
    if not isinstance(k, int) or not 1 <= k <= columns:
        raise ValueError(
            f"k must be an integer between 1 and the number of target layers, {columns}; came {k}"
        )
    if unique_experts and k > rows:
        raise ValueError(
            f"k must be at most the number of expert layers, {rows}, with unique_experts=True; "
            f"came {k}"
        )
