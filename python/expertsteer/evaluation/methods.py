"""Every method that a steering result has to be shown beside, fitted from two captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

import torch

from ..alignment.aligning import align
from ..alignment.alignment import Alignment
from ..fitting.fitting import fit_vectors
from ..pairing.information import mutual_information
from ..pairing.layer_pairs import LayerPairing, MutualInformation
from ..pairing.rules import Effect, pair_layers
from ..rfm import RFM
from ..states.states import Captured
from ..support.tensors import normal_draws, permutation
from ..vectors.vectors import SteeringVectors

OWN = {
    "target's own mean difference": "mean_difference",
    "target's own PCA": "pca",
    "target's own logistic probe": "logistic",
    "target's own RFM": "rfm",
}
SHUFFLED = "expert: shuffled labels"
ALIGNED = {
    "expert: bare auto-encoder": {"rotation": "none"},
    "expert: ridge": {"method": "ridge"},
    "expert: identity": {"method": "identity"},
}
PAIRED = {
    "expert: Procrustes, highest pairs": "highest",
    "expert: Procrustes, random pairs": "random",
    "expert: Procrustes, validated pairs": "validated",
}
PAPER = "expert: Procrustes, lowest pairs"
METHODS = (*OWN, SHUFFLED, *ALIGNED, *PAIRED, PAPER)
SHORTLIST = 24  # pairs whose effect is measured for the validated ones, unless more are steered

PairEffect = Callable[[SteeringVectors], float]


@dataclass(frozen=True)
class Fitting:
    """How the methods are fitted: what they have in common.

    Attributes:
        expert, target: the captures; without one of them, the methods that need it are missing.
        pairs: layer pairs of the expert's methods.
        rfm: settings of the RFM, the default one if ``None``.
        seed: of the shuffled labels, of the random pairs and of the validation split.
        effect: of a pair's vectors on validation data, for the validated pairs.
        shortlist: how many pairs are measured for them, by default 3 for each pair, at most 24.
        pairings: by method, of those that were fitted with one; filled by `fit_methods`.
    """

    expert: Captured | None
    target: Captured | None
    pairs: int
    rfm: RFM | None = None
    seed: int = 0
    effect: PairEffect | None = None
    shortlist: int | None = None
    pairings: dict[str, LayerPairing] = field(default_factory=dict)

    @cached_property
    def information(self) -> MutualInformation:
        return mutual_information(self.expert, self.target)

    @cached_property
    def procrustes(self) -> Alignment:
        """The default alignment, of all layers."""
        return align(self.expert, self.target)

    @property
    def listed(self) -> int:
        """Pairs whose effect is measured for the validated ones."""
        return self.shortlist or max(self.pairs, min(3 * self.pairs, SHORTLIST))

    def searched(self, name: str) -> int:
        """Strengths that have to be found to fit a method."""
        return self.listed if PAIRED.get(name) == "validated" else 0

    def vectors(
        self, alignment: Alignment, pairing: LayerPairing, method: str = "rfm", **states
    ) -> SteeringVectors:
        expert, target = states.get("expert", self.expert), states.get("target", self.target)
        rfm = self.rfm if method == "rfm" else None
        return fit_vectors(expert, target, alignment, pairing, method, rfm=rfm, seed=self.seed)


def fit_methods(
    fitting: Fitting, methods: Sequence[str] | None = None
) -> tuple[dict[str, SteeringVectors], dict[str, str]]:
    """The vectors of every method by its name, and why the others are missing.

    Args:
        methods: some of `METHODS`, by default all.

    Raises:
        ValueError: an unknown method; what the fits raise.
    """
    reasons = missing(fitting, methods)
    wanted = METHODS if methods is None else methods
    wanted = [name for name in METHODS if name in wanted and name not in reasons]
    fitted = {name: _own(fitting, OWN[name]) for name in wanted if name in OWN}
    return fitted | _experts(fitting, [name for name in wanted if name not in OWN]), reasons


def missing(fitting: Fitting, methods: Sequence[str] | None = None) -> dict[str, str]:
    """Why methods cannot be fitted, by name, of those that are wanted; see `fit_methods`."""
    wanted = tuple(METHODS if methods is None else methods)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise ValueError(f"methods must be some of {METHODS}, came {unknown or wanted}")
    return {name: reason for name in wanted if (reason := _why_not(name, fitting))}


def random_directions(target: Captured, seed: int) -> SteeringVectors:
    """Unit directions drawn uniformly at every captured layer, with the scales of fitted ones."""
    drawn = normal_draws(len(target.layers), target.width, seed=seed)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    scales = {layer: target.scale(layer) for layer in target.layers}
    return SteeringVectors(dict(zip(target.layers, drawn)), scales)


def random_like(given: SteeringVectors, seed: int) -> SteeringVectors:
    """Directions drawn uniformly, with the layers, norms and scales of given vectors."""
    drawn = normal_draws(len(given.layers), given.width, seed=seed)
    norms = torch.stack([given.vectors[layer].float().norm().cpu() for layer in given.layers])
    drawn = drawn / drawn.norm(dim=1, keepdim=True) * norms.unsqueeze(1)
    return SteeringVectors(dict(zip(given.layers, drawn)), given.scales)


def _why_not(name: str, fitting: Fitting) -> str | None:
    if fitting.target is None:
        return "needs the target's states over a contrast set"
    if OWN.get(name) == "logistic" and find_spec("sklearn") is None:
        return "needs scikit-learn: pip install 'expertsteer[sklearn]'"
    if fitting.expert is None:
        return None if name in OWN else "needs an expert's states over a contrast set"
    widths = fitting.expert.width, fitting.target.width
    if name == "expert: identity" and widths[0] != widths[1]:
        return f"needs equal widths, came {widths[0]} (expert) and {widths[1]} (target)"
    if PAIRED.get(name) == "validated" and fitting.effect is None:
        return "needs an effect measured on validation data"
    return None


def _own(fitting: Fitting, method: str) -> SteeringVectors:
    target = fitting.target
    alignment, pairing = align(target, target, "identity"), LayerPairing.same(target.layers)
    return fitting.vectors(alignment, pairing, method, expert=target)


def _experts(fitting: Fitting, names: Sequence[str]) -> dict[str, SteeringVectors]:
    if not names:
        return {}
    expert, target = fitting.expert, fitting.target

    def paired(rule: str, effect: Effect | None = None) -> LayerPairing:
        axes = {"expert_layers": expert.layers, "target_layers": target.layers}
        options = {"effect": effect, "seed": fitting.seed}
        if effect is not None:
            options["shortlist"] = fitting.listed
        return pair_layers(fitting.information, fitting.pairs, rule, **axes, **options)

    lowest, procrustes = paired("lowest"), fitting.procrustes

    def effect(expert_layer: int, target_layer: int) -> float:
        pair = LayerPairing(((expert_layer, target_layer, float("nan")),))
        return fitting.effect(fitting.vectors(procrustes, pair))

    fitted, pairings = {}, fitting.pairings
    for name in names:
        pairings[name] = lowest
        if name == SHUFFLED:
            order = permutation(len(expert), fitting.seed)
            mixed = {"expert": expert, "target": target}
            mixed = {side: s.relabelled(s.labels[order]) for side, s in mixed.items()}
            fitted[name] = fitting.vectors(procrustes, lowest, **mixed)
        elif name in ALIGNED:
            fitted[name] = fitting.vectors(
                align(expert, target, **ALIGNED[name], pairing=lowest), lowest
            )
        elif name in PAIRED:
            measured = effect if PAIRED[name] == "validated" else None
            pairings[name] = paired(PAIRED[name], measured)
            fitted[name] = fitting.vectors(procrustes, pairings[name])
        else:
            fitted[name] = fitting.vectors(procrustes, lowest)
    return fitted
