"""The vectors that a live model can be steered with, in buffers whose contents change in place.

Slots, compiled graphs and CUDA graphs keep reading the same memory, so a new strength, vector or
choice of vectors per sequence costs a copy and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops.steering.reference import inverse_norms
from ..support.arguments import finite_number
from ..support.numbers import setting, short
from ..vectors.vectors import SteeringVectors

# The square of such a norm still is a number in single precision, in which models take norms.
MOST_ADDED = 1e19


@dataclass
class Buffers:
    """What one layer's slot reads on one device, in one type (see `ops.steer`).

    Attributes:
        table: ``[R, D]``: a zero row, one row per vector, and the gate's.
        inverse_norms: ``[R]``.
        rows: ``[B or 1, S]`` int32; strengths: the same, in the table's type.
        gates: ``[1]`` int32, ``None`` without a gate; thresholds: ``[1]``.
    """

    table: Tensor
    inverse_norms: Tensor
    rows: Tensor
    strengths: Tensor
    gates: Tensor | None = None
    thresholds: Tensor | None = None


@dataclass(frozen=True)
class Gate:
    """Steer a token only where its state projects on a vector beyond a threshold.

    Attributes:
        vectors: one direction per steered layer, such as those fitted for "this is about medicine".
        threshold: of ``h . g / |g|``, in units of the vectors' scale at the layer (with fitted
            vectors how far apart the states are).
    """

    vectors: SteeringVectors
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, SteeringVectors):
            raise ValueError(
                f"Gate vectors must be SteeringVectors, came {type(self.vectors).__name__}"
            )
        object.__setattr__(self, "threshold", finite_number("Gate threshold", self.threshold))


class Bank:
    """Named vectors, which of them steer which sequence, and how strongly.

    Args:
        experts: vectors by name; their layers may differ.
        operation: see `ops.steer`.
        gate: ``None`` steers every token.
    """

    def __init__(self, experts: Mapping[Any, SteeringVectors], operation: str, gate: Gate | None):
        self.operation, self.gate = operation, gate
        self.experts = dict(experts)
        self.layers = tuple(sorted({i for v in experts.values() for i in v.layers}))
        self.width = next(iter(experts.values())).width
        self.strength = 0.0
        self.rows, self.factors = self._everyone()
        self.sequences = 1  # for how many rows are given; 1 serves any number
        self._buffers: dict[tuple[int, torch.device, torch.dtype], Buffers] = {}
        self._replaced: list[Tensor] = []

    @property
    def silent(self) -> bool:
        """Whether nothing can change, not even by rounding."""
        idle = self.strength == 0.0 and self.operation != "clamp"
        return idle or not bool(self.rows.any())

    @property
    def amplifies(self) -> bool:
        """Whether states grow from layer to layer by a factor that nobody knows beforehand."""
        strongest = abs(self.strength) * float(self.factors.abs().max())
        return self.operation == "remove" and strongest > 2  # up to there none gets longer

    def set_rows(self, choice: Sequence[Any] | None, strengths: Sequence[float] | None) -> None:
        """See `Steering.set_rows`. Nothing is changed when it raises."""
        if choice is None:
            rows, factors = self._everyone()
        else:
            rows, factors = self._chosen(choice, strengths)
        self._check(self.experts, self.strength, factors)
        self.rows, self.factors, self.sequences = rows, factors, len(rows)
        self._refill()

    def fill(self, experts: Mapping[Any, SteeringVectors], strength: float) -> None:
        """Other vectors for the same names and layers, another strength; nothing when it raises."""
        self._check(experts, strength, self.factors)
        self.experts, self.strength = dict(experts), strength
        self._refill()

    def snapshot(self) -> tuple:
        """What `restore` takes back."""
        return self.experts, self.strength, self.rows, self.factors, self.sequences

    def restore(self, snapshot: tuple) -> None:
        self.experts, self.strength, self.rows, self.factors, self.sequences = snapshot
        self._refill()

    def buffers(self, layer: int, device: torch.device, wide: torch.dtype) -> Buffers:
        """What the slot of ``layer`` reads for states on ``device``; always the same tensors."""
        key = layer, device, wide
        if key not in self._buffers:
            # A tensor made in inference mode could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                made = self._contents(layer, wide)
                moved = {n: None if t is None else t.to(device) for n, t in vars(made).items()}
            moved |= self._shared(device, wide)
            self._buffers[key] = Buffers(**moved)
        return self._buffers[key]

    def stack(self, buffers: Sequence[Buffers]) -> Tensor:
        """Put the tables of several layers, all of one kind, into one tensor ``[L, R, D]``."""
        with torch.inference_mode(False), torch.no_grad():
            tables = torch.stack([own.table for own in buffers])
        for own, table in zip(buffers, tables):
            own.table = table
        return tables

    def displacement(self, layer: int) -> Tensor:
        """What is added at ``layer`` where one choice of vectors serves every sequence, ``[D]``."""
        buffers = self._contents(layer, torch.float64)
        return buffers.strengths[0] @ buffers.table[buffers.rows[0].long()]

    def _everyone(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(1, len(self.experts) + 1, dtype=torch.int32, device="cpu").unsqueeze(0)
        return rows, torch.ones(rows.shape, dtype=torch.float64, device="cpu")

    def _chosen(
        self, choice: Sequence[Any], strengths: Sequence[float] | None
    ) -> tuple[Tensor, Tensor]:
        if isinstance(choice, (str, bytes, Mapping)) or not len(choice):
            raise ValueError(
                "rows must be a list with one entry per sequence (a name, None, a list of names, "
                f"or {{name: strength}}), came {choice!r}"
            )
        weights = [self._weights(entry) for entry in choice]
        if strengths is None:
            strengths = [1.0] * len(weights)
        if not isinstance(strengths, (Sequence, Tensor)) or isinstance(strengths, (str, bytes)):
            raise ValueError(f"strengths must be a list of one number per row, came {strengths!r}")
        if len(strengths) != len(weights):
            raise ValueError(
                f"strengths must hold one number for each of {len(weights)} rows, came "
                f"{len(strengths)}"
            )
        most = max(1, *(len(w) for w in weights))
        rows = torch.zeros(len(weights), most, dtype=torch.int32, device="cpu")
        factors = torch.zeros(len(weights), most, dtype=torch.float64, device="cpu")
        strengths = [finite_number(f"strengths[{b}]", one) for b, one in enumerate(strengths)]
        for b, (own, strength) in enumerate(zip(weights, strengths)):
            for s, (row, weight) in enumerate(own.items()):
                rows[b, s], factors[b, s] = row, weight * strength
        return rows, factors

    def _weights(self, entry: Any) -> dict[int, float]:
        """``{table row: strength}`` of one sequence."""
        if entry is None:
            return {}
        if isinstance(entry, Mapping):
            return {
                self._row(name): finite_number(f"rows: the strength of {name!r}", strength)
                for name, strength in entry.items()
            }
        names = entry if isinstance(entry, (list, tuple)) else [entry]
        return {self._row(name): 1.0 for name in names}

    def _row(self, name: Any) -> int:
        names = list(self.experts)
        if name not in names:
            raise ValueError(f"rows: no vectors named {name!r}; there are {names}")
        return names.index(name) + 1

    def _check(self, experts: Mapping, strength: float, factors: Tensor) -> None:
        """Nothing that makes states too long for the norms that follow them."""
        largest = float(factors.abs().max()) * abs(strength)
        total = 0.0
        for vectors in experts.values():
            for layer in vectors.layers:
                norm = largest * float(vectors.displacement(layer).double().norm())
                total += norm
                if not total < MOST_ADDED:
                    raise ValueError(
                        f"strength {setting(strength)} adds a norm of {short(float(norm), 3)} at "
                        f"layer {layer} (up to there {short(float(total), 3)} in all); beyond "
                        f"{setting(MOST_ADDED)} the squares that the model's norms take are not "
                        "finite, and its logits may all be zero; lower the strength"
                    )

    def _shared(self, device: torch.device, wide: torch.dtype) -> dict[str, Tensor]:
        """What the layers read alike, as another one has it: compiled passes check it once."""
        kept = next((b for key, b in self._buffers.items() if key[1:] == (device, wide)), None)
        if kept is None:
            return {}
        alike = {"rows": kept.rows}
        return alike if self.operation == "clamp" else alike | {"strengths": kept.strengths}

    def _refill(self) -> None:
        """Write every buffer again, in place where the shapes are the same.

        What is replaced lives until the next change: a slot of another thread may be reading it.
        """
        moved: dict[int, tuple[Tensor, Tensor]] = {}  # what layers share they go on sharing
        with torch.inference_mode(False), torch.no_grad():
            for (layer, device, wide), kept in self._buffers.items():
                for name, value in vars(self._contents(layer, wide)).items():
                    old = getattr(kept, name)
                    if value is None:
                        continue
                    if old.shape == value.shape:
                        old.copy_(value)
                    else:
                        moved.setdefault(id(old), (old, value.to(device)))
                        setattr(kept, name, moved[id(old)][1])
        self._replaced = [old for old, _ in moved.values()]

    def _contents(self, layer: int, wide: torch.dtype) -> Buffers:
        table = torch.zeros(len(self.experts) + 1, self.width, dtype=wide, device="cpu")
        for row, vectors in enumerate(self.experts.values(), start=1):
            if layer in vectors.vectors:
                table[row] = vectors.displacement(layer)
        gates = thresholds = None
        if self.gate is not None:
            direction = self.gate.vectors.vectors[layer].to(table)
            table = torch.cat([table, direction.unsqueeze(0)])
            gates = torch.tensor([len(table) - 1], dtype=torch.int32, device="cpu")
            scale = self.gate.vectors.scales[layer]
            thresholds = torch.tensor([self.gate.threshold * scale], dtype=wide, device="cpu")
        strengths = self.strength * self.factors
        if self.operation == "clamp":  # the component becomes strength * scale * |vector|
            strengths = strengths * table[self.rows.long()].double().norm(dim=-1)
        inverse = inverse_norms(table)
        return Buffers(table, inverse, self.rows.clone(), strengths.to(wide), gates, thresholds)
