"""Affine maps between the spaces of two models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..support.artifact_files import parsing, read_artifact, write_artifact
from ..support.paths import local_path
from ..support.reading import OBJECT, WHOLE, checked_field, listed

_OPTIONAL = ("decoder_weight", "decoder_bias", "reconstruction_error", "rank")
_TENSORS = ("encoder_centre", "encoder_weight", "encoder_bias", *_OPTIONAL, "explained_variance")


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
        rank: ``[R]`` int64, given or chosen, with ``method="low_rank"``; ``None`` with others.
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
    rank: Tensor | None = None

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
        named = {n: getattr(self, n) for n in _TENSORS}
        header = {n: getattr(self, n) for n in ("expert_layers", "target_layers", "settings")}
        write_artifact(
            folder, "alignment", {n: t for n, t in named.items() if t is not None}, header
        )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Alignment:
        tensors, header = read_artifact(folder, "alignment")
        where, whole = local_path(folder, "folder") / "alignment.safetensors", listed(WHOLE)
        layers = {
            n: tuple(checked_field(header, n, whole, where))
            for n in ("expert_layers", "target_layers")
        }
        settings = checked_field(header, "settings", OBJECT, where)
        with parsing(folder, "alignment"):
            optional = {n: tensors.pop(n, None) for n in _OPTIONAL}
            return cls(**tensors, **optional, **layers, settings=settings)
