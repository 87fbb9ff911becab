"""What a health check found: figures per pair, findings in words, and the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..support.telling import tell

HEALTH_KEY = "health"  # the metadata's name for what `inspect` shows again
# Figures that are bad at or above their limit; the others are at or below it.
MOST = ("reconstruction_error", "largest_coordinate", "largest_norm")


class HealthWarning(UserWarning):
    """The health check of a fit found something wrong."""


@dataclass(frozen=True)
class PairHealth:
    """The figures of one layer pair; ``None`` where one could not be measured.

    Attributes:
        expert_layer, target_layer: the pair.
        reconstruction_error: of the aligner, refitted without a fifth of the rows, on those rows;
            1 is no better than their mean.
        explained_variance: share of the target's variance on those rows that the aligned expert
            states explain at their best length; explained_variance_seen: on the other rows.
        auc: of fits on halves of the examples, on the other halves: how well the expert's states
            tell the classes apart. target_auc: the same of the target's own states, by the same
            method, settings and halves. validation_auc: what `fit_vectors` measured on its
            validation rows, on which it also chose the iteration.
        stability: mean cosine between the directions of disjoint halves; stability_low: least.
        agreement: cosine of the vector with the difference of the classes' means.
        share: share of the AGOP's trace in its first eigenvalue, mean over the halves.
        effect: what was measured of the pair on held-out rows when it was chosen, in the unit that
            the pairing's settings name; ``None`` for pairs chosen by information.
        nats, floor, z_score: the pair's information, the 95 % quantile of the permutations, and
            the distance from their mean in standard deviations.
        distinct: share of the expert's rows that remain when near-duplicates count once.
        expert_spread, target_spread: root mean squared distance of the states from their mean
            over their root mean squared length.
        largest_coordinate: largest share of one coordinate in the target's mean squared length.
        largest_norm: longest of the target's states over the median one.
    """

    expert_layer: int
    target_layer: int
    reconstruction_error: float | None = None
    explained_variance: float | None = None
    explained_variance_seen: float | None = None
    auc: float | None = None
    validation_auc: float | None = None
    stability: float | None = None
    stability_low: float | None = None
    agreement: float | None = None
    share: float | None = None
    nats: float | None = None
    floor: float | None = None
    z_score: float | None = None
    distinct: float | None = None
    expert_spread: float | None = None
    target_spread: float | None = None
    largest_coordinate: float | None = None
    largest_norm: float | None = None
    target_auc: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        check: what was looked at, such as ``"auc"``, ``"duplicates"`` or ``"scale"``.
        message: what is wrong, how bad, and what to do.
        figure: the attribute of `PairHealth` that tells it; none for the examples as a whole.
        pairs: the (expert layer, target layer) concerned.
    """

    check: str
    message: str
    figure: str | None = None
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Health:
    """What `health` measured.

    Attributes:
        pairs: one ``PairHealth`` per layer pair, in the order of the pairing.
        findings: what is wrong; empty where every figure is within its threshold.
        examples, positive: their number, and how many have label 1.
        expert_width, target_width: of the states. With fewer examples than these the figures on
            training rows mean little, those here still hold.
        cuts: random cuts into halves behind ``auc``, ``stability`` and ``share``: twice as many
            fits; half_rows: rows of each, 0 where the examples were too few.
        seed: of the cuts and of the held-out rows.
        limits: ``{figure: last bad value}``; information has its floor instead.
        notes: what is not wrong but good to know before steering: where expert and target tell
            the classes apart (AUC above the limit of ``auc``), and what that means for a vector.
    """

    pairs: tuple[PairHealth, ...]
    findings: tuple[Finding, ...]
    examples: int
    positive: int
    expert_width: int
    target_width: int
    cuts: int
    half_rows: int
    seed: int
    limits: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(finding.message for finding in self.findings)

    @property
    def ok(self) -> bool:
        return not self.findings

    def tell(self) -> None:
        """Each finding as a `HealthWarning`."""
        for message in self.warnings:
            tell(message, HealthWarning)

    def to_dict(self) -> dict[str, Any]:
        """Json values, ``ok`` and ``warnings`` included."""
        return {"ok": self.ok, "warnings": list(self.warnings)} | asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Health:
        """What `to_dict` gave, after json too; KeyError, TypeError or ValueError for others."""
        kept = {name: int(document[name]) for name in _COUNTS}
        limits = {str(name): float(v) for name, v in document["limits"].items()}
        findings = []
        for f in document["findings"]:
            pairs = tuple((int(e), int(t)) for e, t in f["pairs"])
            findings.append(Finding(str(f["check"]), str(f["message"]), f["figure"], pairs))
        return cls(
            tuple(PairHealth(**p) for p in document["pairs"]),
            tuple(findings),
            **kept,
            limits=limits,
            notes=tuple(str(note) for note in document.get("notes", ())),
        )


_COUNTS = ("examples", "positive", "expert_width", "target_width", "cuts", "half_rows", "seed")
