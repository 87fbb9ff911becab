"""What step 2 hands on: information between layers, and the layer pairs chosen from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ..support.artifact_files import parsing, read_artifact, write_artifact
from ..support.numbers import short
from ..support.paths import local_path
from ..support.reading import (
    ANY,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    ArtifactError,
    checked_field,
    listed,
    optional,
)

KIND = "layer_pairing"


@dataclass(frozen=True, eq=False)
class MutualInformation:
    """Information between layers, with what chance alone would give and how sure it is.

    All tensors are ``[L_E, L_T]``, in nats unless said otherwise; ``None`` where not asked for.

    Attributes:
        nats: the estimate.
        floor: the 95 % quantile over row permutations of one side.
        z_score: (nats - mean of the permutations) / their standard deviation, a pure number.
        permutations: how many permutations the null holds.
        low, high: 95 % interval over examples.
        standard_error: over examples.
        draws: how many draws of examples the interval holds.
        shrinkage: share by which correlations were shrunk, 0 where the unbiased estimate exists.
        estimator, examples, components: how it was made.
    """

    nats: Tensor
    floor: Tensor | None = None
    z_score: Tensor | None = None
    permutations: int = 0
    low: Tensor | None = None
    high: Tensor | None = None
    standard_error: Tensor | None = None
    draws: int = 0
    shrinkage: Tensor | None = None
    estimator: str = "gaussian"
    examples: int | None = None
    components: int | None = None


class LayerPair(NamedTuple):
    """One intervention: expert layer, target layer, and their mutual information in nats."""

    expert_layer: int
    target_layer: int
    nats: float


@dataclass(frozen=True, eq=False, repr=False)
class LayerPairing:
    """The chosen layer pairs, in the order in which the rule chose them.

    Attributes:
        pairs: ``LayerPair`` rows; a target layer appears at most once.
        rule: ``"effect"``, ``"lowest"``, ``"highest"``, ``"random"``, ``"validated"``, or
            ``"given"`` for pairs by hand.
        matrix: the information ``[L_E, L_T]`` (nats) the choice was made from, if any.
        expert_axis, target_axis: the layers that the rows and columns of ``matrix`` stand for.
        floor: ``[L_E, L_T]``, what chance alone would give, where it was estimated.
        effects: ``(expert_layer, target_layer, effect)`` for every pair that was measured.
        settings: how many pairs, tolerance, windows, what was measured as the effect; json
            values.
        expert_auc: of every layer of ``expert_axis``, how well it tells the classes apart on rows
            held out (.5 is guessing), NaN where it has nothing to find; empty where not measured.
    """

    pairs: tuple[LayerPair, ...]
    rule: str = "given"
    matrix: Tensor | None = None
    expert_axis: tuple[int, ...] = ()
    target_axis: tuple[int, ...] = ()
    floor: Tensor | None = None
    effects: tuple[tuple[int, int, float], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    expert_auc: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        pairs = tuple(LayerPair(int(p[0]), int(p[1]), float(p[2])) for p in self.pairs)
        if not pairs:
            raise ValueError("pairs must hold at least one (expert_layer, target_layer, nats) row")
        targets = [p.target_layer for p in pairs]
        if len(set(targets)) < len(targets):
            raise ValueError(f"a target layer may be steered once, came target layers {targets}")
        object.__setattr__(self, "pairs", pairs)
        aucs = tuple(math.nan if value is None else float(value) for value in self.expert_auc)
        object.__setattr__(self, "expert_auc", aucs)
        if self.matrix is None:
            return
        if self.matrix.ndim != 2:
            raise ValueError(f"matrix must be [L_E, L_T], came {tuple(self.matrix.shape)}")
        for name, count in zip(("expert_axis", "target_axis"), self.matrix.shape):
            axis = tuple(int(i) for i in getattr(self, name)) or tuple(range(count))
            if len(axis) != count:
                raise ValueError(f"{name} must name {count} layers like matrix, came {axis}")
            object.__setattr__(self, name, axis)
        if aucs and len(aucs) != len(self.expert_axis):
            raise ValueError(
                f"expert_auc must hold one for each of the {len(self.expert_axis)} expert layers, "
                f"came {len(aucs)}"
            )
        if self.floor is not None and self.floor.shape != self.matrix.shape:
            raise ValueError(
                f"floor must have the shape of matrix, {tuple(self.matrix.shape)}, came "
                f"{tuple(self.floor.shape)}"
            )

    def __repr__(self) -> str:
        listed = ", ".join(
            f"{p.expert_layer} -> {p.target_layer}: {short(float(p.nats), 3)}" for p in self
        )
        matrix = "none" if self.matrix is None else "x".join(map(str, self.matrix.shape))
        return f"LayerPairing(rule={self.rule!r}, nats=[{listed}], matrix={matrix})"

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        tensors = {"matrix": self.matrix, "floor": self.floor}
        tensors = {name: t for name, t in tensors.items() if t is not None}
        header = {
            # json has no NaN: pairs by hand may have no information
            "pairs": [[*p[:2], None if p.nats != p.nats else p.nats] for p in self.pairs],
            "rule": self.rule,
            "expert_axis": self.expert_axis,
            "target_axis": self.target_axis,
            "effects": self.effects,
            "settings": self.settings,
            "expert_auc": [None if value != value else value for value in self.expert_auc],
        }
        write_artifact(folder, KIND, tensors, header)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> LayerPairing:
        tensors, header = read_artifact(folder, KIND)
        where = local_path(folder, "folder") / f"{KIND}.safetensors"
        rows = checked_field(header, "pairs", listed(listed(ANY, 3)), where)
        effects = checked_field(header, "effects", listed(listed(ANY, 3)), where)
        for name, kind, found in (("pairs", optional(NUMBER), rows), ("effects", NUMBER, effects)):
            for row in found:
                if not all(map(WHOLE.fits, row[:2])) or not kind.fits(row[2]):
                    raise ArtifactError(f"{where}: field {name!r} holds a row {row}")
        axes = [
            checked_field(header, f"{side}_axis", listed(WHOLE), where)
            for side in ("expert", "target")
        ]
        with parsing(folder, KIND):
            return cls(
                tuple(LayerPair(e, t, float("nan") if n is None else n) for e, t, n in rows),
                checked_field(header, "rule", TEXT, where),
                tensors.get("matrix"),
                *map(tuple, axes),
                tensors.get("floor"),
                tuple((e, t, value) for e, t, value in effects),
                checked_field(header, "settings", OBJECT, where),
                tuple(checked_field(header, "expert_auc", listed(optional(NUMBER)), where, ())),
            )

    def entry(self, matrix: Tensor | None, expert_layer: int, target_layer: int) -> float | None:
        """Of ``matrix [L_E, L_T]`` over the axes, at two layers; ``None`` where it has none."""
        axes = self.expert_axis, self.target_axis
        if matrix is None or expert_layer not in axes[0] or target_layer not in axes[1]:
            return None
        return float(matrix[axes[0].index(expert_layer), axes[1].index(target_layer)])

    @classmethod
    def same(cls, layers: Iterable[int]) -> LayerPairing:
        """Each layer paired with itself: a model's own vectors, the controls of a comparison."""
        return cls(pairs=tuple(LayerPair(i, i, float("nan")) for i in layers))

    @property
    def expert_layers(self) -> tuple[int, ...]:
        return tuple(p.expert_layer for p in self.pairs)

    @property
    def target_layers(self) -> tuple[int, ...]:
        return tuple(p.target_layer for p in self.pairs)

    def __iter__(self) -> Iterator[LayerPair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)
