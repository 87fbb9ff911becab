"""Step 1: carry expert states into the target's space.

The auto-encoder is the paper's (ExpertSteer, arXiv 2505.12313): per expert layer an affine
``f: R^{d_E} -> R^{d_T}`` and ``g`` back, minimising ``mean ||h - g(f(h))||^2``. That loss does not
change when f is followed by an invertible map and g by its inverse, so it leaves the basis of
the code open. ``rotation="procrustes"`` picks, among its minimisers, the one whose code is nearest
to the target's states on the same examples; without it the code is in no particular basis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..pairing.layer_pairs import LayerPairing
from ..states.same_examples import require_same_examples
from ..states.states import Captured
from ..support.progress import progress
from ..support.tensors import integers
from .alignment import Alignment
from .low_rank import chosen_rank, low_rank
from .maps import AffineMap, procrustes, ridge, unrotated

ALIGNMENTS = ("autoencoder", "ridge", "low_rank", "identity")
ONTO_TARGET = ("ridge", "low_rank")  # whose codes differ by more than a rotation between targets
SOLVERS = ("closed_form", "adam")
ROTATIONS = ("procrustes", "none")


def align(
    expert: Captured,
    target: Captured,
    method: str = "autoencoder",
    *,
    solver: str = "closed_form",
    rotation: str = "procrustes",
    reg: float = 1e-2,
    rank: int | None = None,
    steps: int = 3000,
    learning_rate: float = 3e-2,
    seed: int = 0,
    pairing: LayerPairing | Iterable[tuple[int, int]] | None = None,
) -> Alignment:
    """Fit the maps from expert layers into the target's space.

    Args:
        expert, target: captures over one contrast set, ``[L_E, N, d_E]`` and ``[L_T, N, d_T]``,
            in memory or on disk (`StoredStates`).
        method: ``"autoencoder"`` (the paper), ``"ridge"`` (affine least squares onto the target's
            states), ``"low_rank"`` (the same through at most ``rank`` dimensions, see below) or
            ``"identity"`` (equal widths and shared ancestry; fits nothing).
        solver: of the auto-encoder: ``"closed_form"`` (principal subspace) or ``"adam"``.
        rotation: of the auto-encoder: ``"procrustes"`` or ``"none"`` (the paper's bare one).
        reg: ridge strength of ``"ridge"`` and ``"low_rank"``, as a share of the mean variance of
            the expert's states (which ``"low_rank"`` standardises).
        rank: of ``"low_rank"``, 1 to the smaller width; by default each pair's own, chosen by
            cross-validation (five folds drawn with ``seed``, the sides of a pair in one): the
            smallest whose held-out error is within one standard error of the best.
        steps, learning_rate, seed: of Adam (full batch, states scaled to unit mean variance).
        pairing: the (expert layer, target layer) rows to fit. By default every expert layer, with
            the target layer at the same relative depth.

    Returns:
        An `Alignment` with one row per pair, computed in float32 (float64 for float64 states).

    Raises:
        ValueError: an unknown option, captures over different examples, layers that were not
            captured, unequal widths with ``"identity"``, fewer than two examples, a rank above
            the smaller width.

    ``"low_rank"`` solves reduced-rank ridge regression in closed form: with X and Y the states of
    expert and target, every coordinate less its mean and over its standard deviation, and N rows,

        min ||Y - X A||^2 + reg N ||A||^2   over A of rank r,   A = B V V^T

    where B is the ridge solution and V holds the top r right singular vectors of ``[X; sqrt(reg N)
    I] B``. The code is A's, put back into the target's units. Coordinates are standardised on both
    sides, because a few of them hold most of the variance of real models' states: without it they
    alone would set the penalty and take the first ranks. The code of a state is therefore the same
    whatever the units of each of the expert's coordinates, and follows the target's; a rotation of
    either space changes it.
    """
    require_choice("method", method, ALIGNMENTS)
    require_choice("solver", solver, SOLVERS)
    require_choice("rotation", rotation, ROTATIONS)
    require_same_examples(expert, target)
    if len(expert.labels) < 2:
        raise ValueError(f"alignment needs at least 2 examples, came {len(expert.labels)}")
    if method == "identity" and expert.width != target.width:
        raise ValueError(
            f"method='identity' needs equal widths, came {expert.width} (expert) and "
            f"{target.width} (target); use method='autoencoder' or 'ridge'"
        )
    settings: dict[str, Any] = {"method": method}
    if method == "autoencoder":
        settings |= {"solver": solver, "rotation": rotation}
        if solver == "adam":
            _require_positive(steps=steps, learning_rate=learning_rate)
            settings |= {"steps": int(steps), "learning_rate": learning_rate, "seed": seed}
    elif method == "ridge":
        _require_positive(reg=reg)
        settings |= {"reg": reg}
    elif method == "low_rank":
        _require_positive(reg=reg)
        widest = min(expert.width, target.width)
        if rank is not None and not (isinstance(rank, int) and 1 <= rank <= widest):
            raise ValueError(
                f"rank must be a whole number from 1 to {widest}, the smaller width, or None for "
                f"cross-validation, came {rank!r}"
            )
        settings |= {"reg": reg, "rank": rank, "seed": seed}
    pairs = same_depth(expert, target) if pairing is None else [tuple(p)[:2] for p in pairing]
    if not pairs:
        raise ValueError("pairing must hold at least one (expert layer, target layer), came none")
    return _fit(expert, target, pairs, settings)


def align_pairs(
    alignment: Alignment, expert: Captured, target: Captured, pairs: Iterable[tuple[int, int]]
) -> Alignment:
    """The same kind of alignment with exactly the given (expert, target) rows.

    Rows the alignment already holds are kept as they are; the others are fitted with its settings
    on these states. A vector has to be expressed in the basis of the layer it will steer.
    """
    pairs = [tuple(p)[:2] for p in pairs]
    widths = tuple(alignment.encoder_weight.shape[1:])
    if widths != (expert.width, target.width):
        raise ValueError(
            f"alignment maps width {widths[0]} to {widths[1]}, but expert and target have widths "
            f"{expert.width} and {target.width}; align these captures first"
        )
    held = [alignment.row(*p) for p in pairs]
    missing = [p for p, row in zip(pairs, held) if row is None]
    fitted = _fit(expert, target, missing, alignment.settings) if missing else None
    sources = [
        (alignment, row) if row is not None else (fitted, missing.index(p))
        for p, row in zip(pairs, held)
    ]

    def gather(name: str) -> Tensor | None:
        rows = [getattr(source, name) for source, _ in sources]
        if rows[0] is None:
            return None
        return torch.stack([tensor[row] for tensor, (_, row) in zip(rows, sources)])

    names = ("encoder_centre", "encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias")
    figures = ("reconstruction_error", "explained_variance", "rank")
    return Alignment(
        tuple(e for e, _ in pairs),
        tuple(t for _, t in pairs),
        **{name: gather(name) for name in names + figures},
        settings=alignment.settings,
    )


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, came {value!r}")


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, came {value}")


def same_depth(expert: Captured, target: Captured) -> list[tuple[int, int]]:
    """Every captured expert layer with the captured target layer at the same relative depth."""
    last_e, last_t = max(len(expert.layers) - 1, 1), len(target.layers) - 1
    return [(e, target.layers[round(i * last_t / last_e)]) for i, e in enumerate(expert.layers)]


def _fit(
    expert: Captured, target: Captured, pairs: list[tuple[int, int]], settings: dict[str, Any]
) -> Alignment:
    double = torch.float64 in (expert.dtype, target.dtype)
    dtype = torch.float64 if double else torch.float32
    encoders: dict[int, AffineMap] = {}  # an expert layer's auto-encoder serves all its pairs
    maps, errors, explained, ranks = [], [], [], []
    for expert_layer, target_layer in progress(pairs, "align"):
        h = expert.layer(expert_layer).to(dtype)
        t = target.layer(target_layer).to(dtype)
        if expert_layer not in encoders:
            encoders[expert_layer] = unrotated(h, t.shape[1], settings)
        if settings["method"] == "ridge":
            fitted = ridge(h, t, settings["reg"])
        elif settings["method"] == "low_rank":
            rank, reg = settings["rank"], settings["reg"]
            if rank is None:
                rank, _ = chosen_rank(h, t, reg, target.pairs, settings["seed"])
            fitted = low_rank(h, t, reg, rank)
            ranks.append(rank)
        elif settings.get("rotation") == "procrustes":
            fitted = procrustes(encoders[expert_layer], h, t)
        else:
            fitted = encoders[expert_layer]
        maps.append(fitted)
        explained.append(1 - _relative_error(t, fitted(h)))
        if fitted.back_weight is not None:
            errors.append(_relative_error(h, fitted.back(fitted(h))))
    return Alignment(
        expert_layers=tuple(e for e, _ in pairs),
        target_layers=tuple(t for _, t in pairs),
        encoder_centre=torch.stack([m.centre for m in maps]),
        encoder_weight=torch.stack([m.weight for m in maps]),
        encoder_bias=torch.stack([m.bias for m in maps]),
        decoder_weight=torch.stack([m.back_weight for m in maps]) if errors else None,
        decoder_bias=torch.stack([m.back_bias for m in maps]) if errors else None,
        reconstruction_error=torch.stack(errors) if errors else None,
        explained_variance=torch.stack(explained),
        rank=integers(ranks) if ranks else None,
        settings=settings,
    )


def _relative_error(states: Tensor, estimate: Tensor) -> Tensor:
    """``mean ||s - estimate||^2 / mean ||s - mean s||^2``, NaN where the states do not vary."""
    variance = (states - states.mean(dim=0)).square().sum()
    error = (states - estimate).square().sum()
    return torch.where(variance > 0, error / variance, torch.nan)
