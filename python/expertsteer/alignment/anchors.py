"""Several experts in one space: their states as similarities to the same anchor texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..states.same_examples import require_same_examples
from ..states.states import Captured, HiddenStates
from ..support.progress import progress
from ..support.tensors import row_indices
from .aligning import same_depth
from .low_rank import standardised


def average_experts(
    experts: Sequence[Captured], anchors: int | Sequence[int] = 64, *, seed: int = 0
) -> HiddenStates:
    """One expert from several: the mean of their states in coordinates that they share.

    After the anchor coordinates of arXiv 2605.09875; the formula is this package's. Every expert
    describes text i by how like its state is to those of A anchor texts, which needs no map
    between experts and no common width:

        s_ij = cos(z_i, z_a(j)),    z the expert's states, each coordinate less its mean and over
                                    its standard deviation over the texts

    and the mean of s over the experts is taken as the state of a single one, of width A: what they
    agree on stays, what each adds by itself averages out. Coordinates are standardised because a
    few enormous ones would decide every cosine; cosines because long states would.

    The result is captured states like any others: pair, align (``"low_rank"`` or ``"ridge"``) and
    fit with it in the place of an expert; `health` gives the variance that it explains of texts
    not fitted on. Its vectors steer any target, since nothing of an expert is needed by then.

    Args:
        experts: captures over the same texts, of any widths and depths; one gives its own anchor
            coordinates.
        anchors: how many of the texts are drawn for anchors, or which, by their rows. An anchor's
            similarity to itself is 1; to leave anchors out of a fit, ``take`` the other rows.
        seed: of the draw.

    Returns:
        `HiddenStates` of the layers of the first expert, ``[L, N, A]``, in float32 (float64 where
        an expert has it). The other experts' layers are those at the same relative depth among
        their captured ones; ``model`` lists the experts and says how many anchors there are.

    Raises:
        ValueError: no experts, captures over different texts, fewer than one anchor, more anchors
            than texts, rows that name one twice or lie outside.
    """
    experts = list(experts)
    if not experts:
        raise ValueError("experts must hold at least one capture, came none")
    first = experts[0]
    for i, other in enumerate(experts[1:], 1):
        require_same_examples(first, other, ("experts[0]", f"experts[{i}]"))
    rows = _anchor_rows(anchors, len(first), seed)
    double = any(expert.dtype == torch.float64 for expert in experts)
    dtype = torch.float64 if double else torch.float32
    places = [dict(same_depth(first, other)) for other in experts]
    layers = [
        sum(_similarities(other.layer(at[e]), rows) for other, at in zip(experts, places))
        / len(experts)
        for e in progress(first.layers, "anchors")
    ]
    names = ", ".join(str(expert.model.get("name", "unnamed")) for expert in experts)
    return HiddenStates(
        torch.stack(layers).to(dtype),
        first.labels,
        first.layers,
        keys=first.keys,
        pairs=first.pairs,
        position=first.position,
        model={
            "name": f"mean of {names} in {len(rows)} anchor coordinates",
            "num_layers": first.model.get("num_layers", len(first.layers)),
            "hidden_size": len(rows),
            "experts": [expert.model for expert in experts],
        },
    )


def _similarities(states: Tensor, anchors: Tensor) -> Tensor:
    """Cosines ``[N, A]`` float64 of standardised states ``[N, d]`` and those of the anchor rows.

    A state that is the mean of all is like none: 0.
    """
    z, _, _ = standardised(states)
    length = z.norm(dim=1, keepdim=True)
    z = torch.where(length > 0, z / length.clamp(min=torch.finfo(z.dtype).tiny), 0.0)
    return z @ z[anchors.to(z.device)].mT


def _anchor_rows(anchors: int | Sequence[int], texts: int, seed: int) -> Tensor:
    if isinstance(anchors, int):
        if not 1 <= anchors <= texts:
            raise ValueError(
                f"anchors must be from 1 to the number of texts, {texts}, came {anchors}"
            )
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(texts, generator=generator, device="cpu")[:anchors]
    rows = row_indices(anchors, texts) % texts
    if not len(rows) or len(rows.unique()) < len(rows):
        raise ValueError(f"anchors must name different rows, at least one, came {anchors}")
    return rows
