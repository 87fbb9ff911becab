"""Which processes run one copy of a model together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..support.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """Processes that run one copy of the model together: one, or those of its tensor parallelism.

    Attributes:
        index: of this copy of the model; count: how many copies there are.
        writes: whether this process is the one of its copy that writes.
    """

    index: int
    count: int
    writes: bool

    @classmethod
    def of(cls, model: nn.Module, ranks: Ranks) -> Team:
        size = getattr(model, "tp_size", None) or spread_over(model)
        if ranks.size % size:
            raise ValueError(
                f"model is spread over {size} processes, which must divide the {ranks.size} that "
                "run; start a multiple of them"
            )
        return cls(ranks.rank // size, ranks.size // size, ranks.rank % size == 0)


def spread_over(model: nn.Module) -> int:
    """Over how many processes the weights are; transformers before 5 does not say otherwise."""
    meshes = (getattr(p, "device_mesh", None) for p in model.parameters())
    return next((mesh.size() for mesh in meshes if mesh is not None), 1)
