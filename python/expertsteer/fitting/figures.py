"""What the health check measures of states: how an alignment does on new rows, and the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..alignment.aligning import ONTO_TARGET, align
from ..alignment.alignment import Alignment
from ..pairing.copies import copies
from ..rfm import RFM
from ..states.states import HiddenStates
from ..support.progress import progress
from ..vectors.vectors import SteeringVectors
from .directions import simple_direction
from .halves import Halves, draw_halves, refit
from .holdout import split

HELD_OUT = 0.2  # of the examples, from the aligner


@dataclass(frozen=True)
class Settings:
    """How the vectors were fitted, and the bounds on the check."""

    method: str
    rfm: RFM
    iterations: list[int | None]  # that were kept, per pair
    cuts: int
    most_rows: int
    seed: int
    progress: bool

    def machine(self, row: int) -> RFM:
        """The one whose last AGOP is that of the kept fit: no refit runs past it."""
        machine, kept = self.rfm.unfitted(), self.iterations[row]
        if kept is not None:
            machine.iters = max(1, min(int(kept), machine.iters))
        return machine


def measure(
    expert: HiddenStates,
    target: HiddenStates,
    aligned: Alignment,
    pairs: list[tuple[int, int]],
    vectors: SteeringVectors,
    settings: Settings,
) -> tuple[list[dict[str, Any]], int]:
    """Figures named as in `PairHealth`, and ``copies`` in words, a dictionary per pair; and the
    number of rows of a half.

    ``aligned`` holds exactly the given pairs.
    """
    labels, seed = target.labels, settings.seed
    halves = draw_halves(labels, target.pairs, settings.cuts, settings.most_rows, seed)
    try:
        parts = split(labels, target.pairs, HELD_OUT, seed)
    except ValueError:  # pairs tie the rows together: the checks say what is not known
        unseen: list[dict[str, float | None]] = [{} for _ in pairs]
    else:
        unseen = unseen_alignment(expert, target, pairs, aligned, *parts)
    codes = aligned.encode(torch.stack([expert.layer(e) for e, _ in pairs]))
    rows: dict[int, dict[str, Any]] = {}  # an expert layer serves several pairs
    refits: dict[tuple, dict[str, float | None]] = {}
    found = []
    for row, (e, t) in enumerate(progress(pairs, "health", settings.progress)):
        if e not in rows:
            states = expert.layer(e)
            distinct, alike = copies(states, settings.most_rows, seed)
            rows[e] = {"distinct": distinct, "copies": alike, "expert_spread": spread(states)}
        figures = unseen[row] | rows[e] | length_figures(target.layer(t))
        machine = settings.machine(row)
        # But for regressions, the codes of one expert layer differ by a rotation only, which
        # changes neither what a fit predicts nor the angle between two fits.
        key = (e, machine.iters, t if aligned.settings["method"] in ONTO_TARGET else None)
        try:
            means = simple_direction(codes[row], labels, "mean_difference").double()
            cosine = torch.cosine_similarity(vectors.vectors[t].to(means), means, dim=0)
            figures["agreement"] = float(cosine)
            if halves is not None and key not in refits:
                refits[key] = refit(codes[row], labels, halves, settings.method, machine)
        except ValueError:
            pass  # nothing to find in such states: figures stay out, and the checks say why
        if halves is not None:  # a pairing holds every target layer once: nothing to share
            own = target.layer(t).to(codes[row])
            figures["target_auc"] = own_auc(own, labels, halves, settings.method, machine)
        found.append(figures | refits.get(key, {}))
    return found, 0 if halves is None else halves.rows.shape[1]


def own_auc(states: Tensor, labels: Tensor, halves: Halves, method: str, rfm: RFM) -> float | None:
    """Held-out AUC of a model's own states ``[N, d]``, as ``refit`` measures it of the codes;
    ``None`` where they hold nothing to find."""
    if bool((states == states[0]).all()):
        return None
    try:
        return refit(states, labels, halves, method, rfm)["auc"]
    except ValueError:  # the rows of some half coincide
        return None


def unseen_alignment(
    expert: HiddenStates,
    target: HiddenStates,
    pairs: list[tuple[int, int]],
    alignment: Alignment,
    train: Tensor,
    held: Tensor,
) -> list[dict[str, float | None]]:
    """Fit an alignment like the given one on ``train`` rows and judge it on ``held`` ones.

    Returns, per pair: ``reconstruction_error`` as in `Alignment`, ``explained_variance`` and, on
    the training rows, ``explained_variance_seen``: the squared correlation of all coordinates of
    code and target state about the training means, negative where they oppose. It is the share of
    the target's variance that the code explains at its best length: a direction has no length, so
    an expert with larger states is no worse.
    """
    some = [sorted(set(side)) for side in zip(*pairs)]  # the states may lie on disk
    taken = [side.take(train, layers) for side, layers in zip((expert, target), some)]
    fitted = align(*taken, pairing=pairs, **alignment.settings)
    found = []
    for row, (expert_layer, target_layer) in enumerate(pairs):
        h, t = expert.layer(expert_layer), target.layer(target_layer)
        h, t = (states.to(fitted.encoder_weight.dtype) for states in (h, t))
        offset, weight = fitted.encoder_centre[row], fitted.encoder_weight[row]
        code = (h - offset) @ weight  # without the bias: only differences count here
        centre, goal = code[train].mean(dim=0), t[train].mean(dim=0)
        figures = {
            "explained_variance": _explained(code[held] - centre, t[held] - goal),
            "explained_variance_seen": _explained(code[train] - centre, t[train] - goal),
            "reconstruction_error": None,
        }
        if fitted.decoder_weight is not None:
            back = code[held] @ fitted.decoder_weight[row] + fitted.decoder_bias[row]
            spread = (h[held] - h[train].mean(dim=0)).double().square().sum()
            error = (h[held] - back).double().square().sum()
            figures["reconstruction_error"] = float(error / spread) if spread > 0 else None
        found.append(figures)
    return found


def _explained(code: Tensor, states: Tensor) -> float | None:
    code, states = code.double(), states.double()
    lengths = code.norm() * states.norm()
    if not lengths > 0:
        return None
    correlation = float((code * states).sum() / lengths)
    return correlation * abs(correlation)


def spread(states: Tensor) -> float:
    """Root mean squared distance from the mean row, over the root mean squared length."""
    states = states.double()
    length = states.square().sum()
    around = (states - states.mean(dim=0)).square().sum()
    return float((around / length).sqrt()) if length > 0 else 0.0


def length_figures(states: Tensor) -> dict[str, float]:
    """How the lengths of the target's states ``[N, d]`` come about.

    Returns:
        ``largest_coordinate``: the largest share of one coordinate in the mean squared length.
        ``largest_norm``: the longest row over the median row. ``target_spread``: see `spread`.
    """
    states = states.double()
    power, norms = states.square().mean(dim=0), states.norm(dim=1)
    total, typical = power.sum(), norms.median()
    return {
        "largest_coordinate": float(power.max() / total) if total > 0 else 0.0,
        "largest_norm": float(norms.max() / typical) if typical > 0 else 0.0,
        "target_spread": spread(states),
    }
