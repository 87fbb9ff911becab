"""Every method that a steering result has to be shown beside, fitted from two captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from .align import align
from .artifacts import Alignment, HiddenStates, LayerPairing
from .fit import fit_vectors
from .information import mutual_information
from .pair import Effect, pair_layers
from .rfm import RFM
from .vectors import SteeringVectors

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
DEFAULT = "expert: Procrustes, lowest pairs (default)"
METHODS = (*OWN, SHUFFLED, *ALIGNED, *PAIRED, DEFAULT)

PairEffect = Callable[[SteeringVectors], float]


@dataclass(frozen=True)
class Fitting:
    """How the methods are fitted: what they have in common.

    Attributes:
        pairs: layer pairs of the expert's methods.
        rfm: settings of the RFM, the default one if ``None``.
        seed: of the shuffled labels, of the random pairs and of the validation split.
        effect: of a pair's vectors on validation data, for the validated pairs.
    """

    expert: HiddenStates
    target: HiddenStates
    pairs: int
    rfm: RFM | None = None
    seed: int = 0
    effect: PairEffect | None = None

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
    wanted = tuple(METHODS if methods is None else methods)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise ValueError(f"methods must be some of {METHODS}, came {unknown or wanted}")
    missing = {name: reason for name in wanted if (reason := _why_not(name, fitting))}
    wanted = [name for name in METHODS if name in wanted and name not in missing]
    fitted = {name: _own(fitting, OWN[name]) for name in wanted if name in OWN}
    return fitted | _experts(fitting, [name for name in wanted if name not in OWN]), missing


def random_directions(target: HiddenStates, seed: int) -> SteeringVectors:
    """Unit directions drawn uniformly at every captured layer, with the scales of fitted ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(target.layers), target.width, generator=generator)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    scales = {layer: target.scale(layer) for layer in target.layers}
    return SteeringVectors(dict(zip(target.layers, drawn)), scales)


def _why_not(name: str, fitting: Fitting) -> str | None:
    widths = fitting.expert.width, fitting.target.width
    if name == "expert: identity" and widths[0] != widths[1]:
        return f"needs equal widths, came {widths[0]} (expert) and {widths[1]} (target)"
    if OWN.get(name) == "logistic" and find_spec("sklearn") is None:
        return "needs scikit-learn: pip install 'expertsteer[sklearn]'"
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
    information = mutual_information(expert.states, target.states)

    def paired(rule: str, effect: Effect | None = None) -> LayerPairing:
        axes = {"expert_layers": expert.layers, "target_layers": target.layers}
        options = {"effect": effect, "seed": fitting.seed}
        return pair_layers(information, fitting.pairs, rule, **axes, **options)

    lowest, procrustes = paired("lowest"), align(expert, target)

    def effect(expert_layer: int, target_layer: int) -> float:
        pair = LayerPairing(((expert_layer, target_layer, float("nan")),))
        return fitting.effect(fitting.vectors(procrustes, pair))

    fitted = {}
    for name in names:
        if name == SHUFFLED:
            order = torch.Generator().manual_seed(fitting.seed)
            order = torch.randperm(len(expert), generator=order)
            mixed = {"expert": expert, "target": target}
            mixed = {side: replace(s, labels=s.labels[order]) for side, s in mixed.items()}
            fitted[name] = fitting.vectors(procrustes, lowest, **mixed)
        elif name in ALIGNED:
            fitted[name] = fitting.vectors(align(expert, target, **ALIGNED[name]), lowest)
        elif name in PAIRED:
            measured = effect if PAIRED[name] == "validated" else None
            fitted[name] = fitting.vectors(procrustes, paired(PAIRED[name], measured))
        else:
            fitted[name] = fitting.vectors(procrustes, lowest)
    return fitted
