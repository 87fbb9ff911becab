"""What the four steps hand to each other: frozen data, checked when made, saved without pickle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ._files import parsing, read_artifact, write_artifact
from ._tensors import as_tensor
from .pairing import LayerPair as LayerPair
from .pairing import LayerPairing as LayerPairing
from .pairing import MutualInformation as MutualInformation
from .stored import StoredStates, open_states, row_indices


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` with the first offending index when ``tensor`` has NaN or infinity."""
    if bool(torch.isfinite(tensor.sum())):  # one pass; a sum that overflows is looked at closely
        return
    finite = torch.isfinite(tensor)
    if not finite.all():
        where = tuple((~finite).nonzero()[0].tolist())
        bad = int((~finite).sum())
        raise ValueError(
            f"{name} must be finite, but {bad} of {tensor.numel()} entries are NaN or infinite "
            f"(the first at index {where})"
        )


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """Decoder-layer outputs of one model over a contrast set, one state per example and layer.

    Attributes:
        states: ``[L, N, D]``, floating point; row ``l`` belongs to decoder layer ``layers[l]``.
        labels: ``[N]`` int64, 1 for the behaviour to steer towards and 0 for its opposite.
        layers: decoder-layer indices counted from 0, strictly increasing.
        keys: ``[N]`` int64, one fingerprint per example, so that two captures can be checked to
            hold the same examples in the same order; ``None`` skips that check.
        pairs: ``[N]`` int64, equal numbers for the sides of one pair and -1 for examples that
            stand alone; splits keep pairs together. ``None`` where nothing is paired.
        position: the token whose state was kept: ``"last"``, ``"mean"`` or an index.
        model: where the states came from (name, revision, architecture, num_layers, hidden_size).

    Raises:
        ValueError: wrong shapes, labels other than 0/1, non-finite states.
    """

    states: Tensor
    labels: Tensor
    layers: tuple[int, ...] = ()
    keys: Tensor | None = None
    pairs: Tensor | None = None
    position: str | int = "last"
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or not self.states.is_floating_point():
            raise ValueError(
                "states must be a floating-point tensor [layers, examples, width], came "
                f"{tuple(self.states.shape)} of {self.states.dtype}"
            )
        count_layers, examples, _ = self.states.shape
        labels = as_tensor(self.labels)
        if labels.shape != (examples,) or not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(
                f"labels must be {examples} zeros and ones, one per example; "
                f"came shape {tuple(labels.shape)}, values {labels.unique()[:8].tolist()}"
            )
        object.__setattr__(self, "labels", labels.to(torch.int64))
        layers = tuple(int(i) for i in self.layers) or tuple(range(count_layers))
        if len(layers) != count_layers or any(b <= a for a, b in zip(layers, layers[1:])):
            raise ValueError(
                f"layers must be {count_layers} increasing indices, one per row of states; "
                f"came {layers}"
            )
        object.__setattr__(self, "layers", layers)
        for name in ("keys", "pairs"):
            values = getattr(self, name)
            if values is not None and values.shape != (examples,):
                raise ValueError(
                    f"{name} must have shape ({examples},), came {tuple(values.shape)}"
                )
        object.__setattr__(self, "states", self.states.detach())
        require_finite("states", self.states)

    @property
    def width(self) -> int:
        return self.states.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.states.dtype

    def __len__(self) -> int:
        return self.states.shape[1]

    def layer(self, index: int) -> Tensor:
        """The states ``[N, D]`` of decoder layer ``index``."""
        if index not in self.layers:
            raise ValueError(f"layer {index} was not captured; captured layers: {self.layers}")
        return self.states[self.layers.index(index)]

    def scale(self, index: int) -> float:
        """Median Euclidean norm of the states of decoder layer ``index``."""
        return float(self.layer(index).float().norm(dim=-1).median())

    def take(
        self, rows: Sequence[int] | Tensor, layers: Sequence[int] | None = None
    ) -> HiddenStates:
        """The same capture restricted to some examples: row indices in order, or a bool mask.

        ``layers`` restricts it to some decoder layers too, by their indices in increasing order.
        """
        rows = row_indices(rows, len(self)).to(self.states.device)
        if layers is None:
            states = self.states[:, rows]
        else:
            states = torch.stack([self.layer(index)[rows] for index in layers])
        kept = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("keys", "pairs")
        }
        layers = self.layers if layers is None else tuple(layers)
        return replace(self, states=states, labels=self.labels[rows], layers=layers, **kept)

    def relabelled(self, labels: Tensor) -> HiddenStates:
        """The same states with other labels ``[N]``."""
        return replace(self, labels=labels)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        tensors = {"states": self.states, "labels": self.labels}
        optional = {"keys": self.keys, "pairs": self.pairs}
        tensors |= {name: t for name, t in optional.items() if t is not None}
        header = {"layers": self.layers, "position": self.position, "model": self.model}
        write_artifact(folder, "hidden_states", tensors, header)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> HiddenStates:
        tensors, header = read_artifact(folder, "hidden_states")
        with parsing(folder, "hidden_states"):
            kept = {name: header[name] for name in ("position", "model")}
            return cls(**tensors, layers=tuple(header["layers"]), **kept)

    @staticmethod
    def open(folder: str | os.PathLike) -> StoredStates:
        """What `save_pretrained` or `capture_to` wrote, its layers left on disk until asked for."""
        return open_states(folder)


def require_same_examples(
    expert: HiddenStates | StoredStates, target: HiddenStates | StoredStates
) -> None:
    """Raise ``ValueError`` unless both captures hold the same examples in the same order."""
    if len(expert.labels) != len(target.labels):
        raise ValueError(
            f"expert holds {len(expert.labels)} examples and target {len(target.labels)}; "
            "capture both models over the same contrast set"
        )
    differ = expert.labels != target.labels
    if expert.keys is not None and target.keys is not None:
        differ = differ | (expert.keys != target.keys)
    if bool(differ.any()):
        raise ValueError(
            f"expert and target differ at example {int(differ.nonzero()[0])} (and at "
            f"{int(differ.sum())} in all): other examples, or the same in another order; "
            "capture both models over the same contrast set"
        )
    if expert.position != target.position:
        raise ValueError(
            f"expert holds states at position {expert.position!r} and target at "
            f"{target.position!r}; capture both at one position"
        )


@dataclass(frozen=True, eq=False)
class Alignment:
    """Affine maps from expert layers into the target's space, one row per (expert, target) pair.

    Attributes:
        expert_layers, target_layers: the R pairs; a row's code lives in its target layer's space.
        encoder_centre: ``[R, d_E]``, subtracted first, so that states far from the origin keep
            their digits.
        encoder_weight: ``[R, d_E, d_T]``; the code of ``h`` is ``(h - centre) @ weight + bias``.
        encoder_bias: ``[R, d_T]``.
        decoder_weight: ``[R, d_T, d_E]``, or ``None`` where the method has no way back; a code c
            comes back as ``(c - encoder_bias) @ decoder_weight + decoder_bias``.
        decoder_bias: ``[R, d_E]``, or ``None``.
        reconstruction_error: ``[R]``, mean ||h - g(f(h))||^2 / mean ||h - mean h||^2; ``None``
            without a decoder, NaN where the states do not vary.
        explained_variance: ``[R]``, 1 - mean ||t - f(h)||^2 / mean ||t - mean t||^2 over the
            paired examples; negative when the code is further from the target's states than
            their mean is, NaN where those do not vary.
        settings: the arguments that made it (``method``, ``solver``, ``rotation``, ...).
    """

    expert_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    encoder_centre: Tensor
    encoder_weight: Tensor
    encoder_bias: Tensor
    decoder_weight: Tensor | None
    decoder_bias: Tensor | None
    reconstruction_error: Tensor | None
    explained_variance: Tensor
    settings: dict[str, Any]

    def encode(self, states: Tensor) -> Tensor:
        """Carry states ``[R, N, d_E]``, row r from ``expert_layers[r]``, to ``[R, N, d_T]``."""
        rows, d_expert, _ = self.encoder_weight.shape
        if states.ndim != 3 or states.shape[0] != rows or states.shape[2] != d_expert:
            raise ValueError(
                f"states must be [{rows}, N, {d_expert}] (expert layers {self.expert_layers}), "
                f"came {tuple(states.shape)}"
            )
        centred = states.to(self.encoder_weight.dtype) - self.encoder_centre.unsqueeze(1)
        return torch.baddbmm(self.encoder_bias.unsqueeze(1), centred, self.encoder_weight)

    def decode(self, codes: Tensor) -> Tensor:
        """Back from codes ``[R, N, d_T]`` to expert states ``[R, N, d_E]``."""
        if self.decoder_weight is None:
            raise ValueError(f"method {self.settings.get('method')!r} has no way back")
        centred = codes - self.encoder_bias.unsqueeze(1)
        return torch.baddbmm(self.decoder_bias.unsqueeze(1), centred, self.decoder_weight)

    def row(self, expert_layer: int, target_layer: int) -> int | None:
        """The row of a pair, or ``None`` when the alignment does not hold that pair."""
        pairs = list(zip(self.expert_layers, self.target_layers))
        pair = (expert_layer, target_layer)
        return pairs.index(pair) if pair in pairs else None

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        named = {n: getattr(self, n) for n in _ALIGNMENT_TENSORS}
        header = {n: getattr(self, n) for n in ("expert_layers", "target_layers", "settings")}
        write_artifact(
            folder, "alignment", {n: t for n, t in named.items() if t is not None}, header
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Alignment:
        tensors, header = read_artifact(folder, "alignment")
        with parsing(folder, "alignment"):
            layers = {n: tuple(header[n]) for n in ("expert_layers", "target_layers")}
            optional = {n: tensors.pop(n, None) for n in _ALIGNMENT_OPTIONAL}
            return cls(**tensors, **optional, **layers, settings=header["settings"])


_ALIGNMENT_OPTIONAL = ("decoder_weight", "decoder_bias", "reconstruction_error")
_ALIGNMENT_TENSORS = (
    "encoder_centre",
    "encoder_weight",
    "encoder_bias",
    "decoder_weight",
    "decoder_bias",
    "reconstruction_error",
    "explained_variance",
)
