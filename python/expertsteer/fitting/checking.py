"""Diagnostics before anyone steers: what each step of a fit measured, and what looks wrong."""

from __future__ import annotations

import math

from torch import Tensor

from ..alignment.aligning import align_pairs
from ..alignment.alignment import Alignment
from ..pairing.layer_pairs import LayerPairing, MutualInformation
from ..rfm import RFM
from ..states.same_examples import require_same_examples
from ..states.states import Captured
from ..support.progress import quietable
from ..vectors.vectors import SteeringVectors
from .figures import Settings, measure
from .health_report import Health, PairHealth
from .holdout import require_classes
from .known_figures import information_figures, kept_figures, machine, method
from .thresholds import findings, least_auc, limits
from .told_apart import said_beforehand, told_apart


@quietable
def health(
    expert: Captured,
    target: Captured,
    alignment: Alignment,
    pairing: LayerPairing,
    vectors: SteeringVectors,
    information: MutualInformation | Tensor | None = None,
    *,
    rfm: RFM | None = None,
    cuts: int = 4,
    most_rows: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Health:
    """Check a fit before it is used; the arguments are those of `fit_vectors` and its result.

    The examples are cut at random into two halves ``cuts`` times, contrast pairs kept together,
    and a direction is fitted on every half, as one batch per expert layer. A half costs between a
    quarter and an eighth of a fit on all rows, so four cuts cost one or two fits, and as much
    again for the target's own states at every target layer; beside it, the aligner is fitted once
    more per pair, with its own settings (``solver="adam"`` trains again).
    Thresholds, and what they were derived from, stand in ``expertsteer/fitting/thresholds.py``.

    Args:
        information: of the layers, with its null (``mutual_information(..., null=20)``). By
            default the matrix and floor that ``pairing`` kept.
        rfm: the machine that was used, if ``vectors.metadata`` does not tell its settings.
        cuts: at least 1; more of them steady the figures, at proportional cost.
        most_rows: larger sets are thinned to this many examples for the halves and for the search
            for near-duplicates, at least 8.
        seed: of the cuts and of the rows held out from the aligner.

    Raises:
        ValueError: other examples in expert and target, fewer than four examples of a label, a
            pair without a vector, information of other layers, numbers out of range.
    """
    _require_at_least(cuts=(cuts, 1), most_rows=(most_rows, 8))
    require_same_examples(expert, target)
    require_classes(target.labels)
    _require_vectors(pairing, vectors, target)
    known = kept_figures(vectors, pairing)
    read = information_figures(pairing, information, expert, target)
    pairs = [(p.expert_layer, p.target_layer) for p in pairing]
    iterations = [figures.pop("iteration") for figures in known]
    settings = Settings(
        method(vectors), machine(vectors, rfm), iterations, cuts, most_rows, seed, progress
    )
    measured, half_rows = measure(
        expert, target, align_pairs(alignment, expert, target, pairs), pairs, vectors, settings
    )
    alike = {e: figures.pop("copies") for (e, _), figures in zip(pairs, measured)}
    rows = tuple(
        PairHealth(*pair, **{name: _finite(v) for name, v in (kept | told | new).items()})
        for pair, kept, told, new in zip(pairs, known, read, measured)
    )
    counts = {
        "examples": len(target.labels),
        "positive": int(target.labels.sum()),
        "expert_width": expert.width,
        "target_width": target.width,
        "cuts": cuts,
        "half_rows": half_rows,
        "seed": seed,
    }
    found = findings(rows, counts, alignment.settings, alike)
    told = told_apart(rows, least_auc(counts)) + said_beforehand(rows)
    return Health(rows, found, **counts, limits=limits(counts), notes=told)


def _require_at_least(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, came {value!r}")


def _require_vectors(pairing: LayerPairing, vectors: SteeringVectors, target: Captured) -> None:
    missing = [t for t in pairing.target_layers if t not in vectors.vectors]
    if missing:
        raise ValueError(
            f"vectors must hold one for every target layer of pairing, there is none at {missing}; "
            "pass the vectors that were fitted for this pairing"
        )
    if vectors.width != target.width:
        raise ValueError(
            f"vectors have width {vectors.width} and the target's states {target.width}; pass the "
            "vectors that were fitted for this target"
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
