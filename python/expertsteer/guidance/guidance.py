"""What guides a target: maps from an expert's states to the target's states of knowing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..alignment.maps import AffineMap
from ..support.artifact_files import parsing, read_artifact, write_artifact
from ..support.paths import local_path
from ..support.reading import NUMBER, OBJECT, WHOLE, checked_field, listed


@dataclass(frozen=True, eq=False)
class Guidance:
    """Affine maps of one expert state per place to what the target's layers shall have there.

    Attributes:
        expert_layers: whose states, side by side, are mapped; ``d`` numbers in all.
        target_layers: the layers that are guided, each by a map of its own.
        centre: ``[d]``, subtracted first.
        weight: ``[layers, d, width]``; bias: ``[layers, width]``. The state of knowing at layer i
            is ``(x - centre) @ weight[i] + bias[i]``.
        strength: the share of the target's own state that it takes the place of, 0 to 1.
        metadata: where it came from, and what was measured.

    Raises:
        ValueError: shapes that do not fit, a strength out of range, values that are not finite.
    """

    expert_layers: tuple[int, ...]
    target_layers: tuple[int, ...]
    centre: Tensor
    weight: Tensor
    bias: Tensor
    strength: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        layers, d = len(self.target_layers), self.centre.numel()
        shapes = {"centre": (d,), "weight": (layers, d, self.width), "bias": (layers, self.width)}
        came = {name: tuple(getattr(self, name).shape) for name in shapes}
        if not layers or not self.expert_layers or came != shapes:
            raise ValueError(
                f"guidance of {layers} target layers and {len(self.expert_layers)} expert layers "
                f"must have tensors of the shapes {shapes}, came {came}"
            )
        if len(set(self.target_layers)) < layers or len(set(self.expert_layers)) < len(
            self.expert_layers
        ):
            raise ValueError(
                "expert_layers and target_layers must name each layer once, came "
                f"{self.expert_layers} and {self.target_layers}"
            )
        if isinstance(self.strength, bool) or not 0 <= self.strength <= 1:
            raise ValueError(f"strength must be a share from 0 to 1, came {self.strength!r}")
        for name in shapes:
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"{name} must be finite, came values that are not")

    @classmethod
    def of_maps(
        cls, expert_layers: tuple[int, ...], maps: Mapping[int, AffineMap], **more: Any
    ) -> Guidance:
        """From the map of each target layer, all fitted on the same expert states."""
        centres = [one.centre for one in maps.values()]
        if any(not torch.equal(centres[0], centre) for centre in centres[1:]):
            raise ValueError("maps must be fitted on the same states, came different centres")
        weight = torch.stack([one.weight for one in maps.values()])
        bias = torch.stack([one.bias for one in maps.values()])
        return cls(tuple(expert_layers), tuple(maps), centres[0], weight, bias, **more)

    @property
    def width(self) -> int:
        """Of the target's states."""
        return self.bias.shape[-1]

    def __call__(self, states: Tensor) -> Tensor:
        """From expert states ``[L, N, d_E]``, its layers in order, to ``[layers, N, width]``."""
        parts, _, width = states.shape
        if parts != len(self.expert_layers) or parts * width != self.centre.numel():
            raise ValueError(
                f"states must be those of expert layers {self.expert_layers}, "
                f"{self.centre.numel()} numbers in all, came {tuple(states.shape)}"
            )
        beside = states.transpose(0, 1).flatten(1).to(self.centre)
        return (beside - self.centre) @ self.weight + self.bias.unsqueeze(1)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``guidance.safetensors`` and ``guidance.json``."""
        tensors = {name: getattr(self, name) for name in ("centre", "weight", "bias")}
        named = ("expert_layers", "target_layers", "strength")
        header = {name: getattr(self, name) for name in named}
        write_artifact(folder, "guidance", tensors, header | {"metadata": dict(self.metadata)})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Guidance:
        """Read what `save_pretrained` wrote.

        Raises:
            ArtifactError: files that are missing, damaged or of another kind.
        """
        tensors, header = read_artifact(folder, "guidance")
        where = local_path(folder, "folder") / "guidance.safetensors"
        layers = {
            name: tuple(checked_field(header, name, listed(WHOLE), where))
            for name in ("expert_layers", "target_layers")
        }
        strength = checked_field(header, "strength", NUMBER, where)
        metadata = checked_field(header, "metadata", OBJECT, where)
        with parsing(folder, "guidance"):
            return cls(**tensors, **layers, strength=strength, metadata=metadata)
