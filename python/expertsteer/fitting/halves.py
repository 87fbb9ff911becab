"""Fits on halves of the examples: how far a direction depends on the rows it was learned from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rfm import RFM, auc
from ..support.tensors import integers
from .directions import simple_direction
from .holdout import strata_of


@dataclass(frozen=True, eq=False)
class Halves:
    """Ways to cut the examples in two, pairs kept together.

    Attributes:
        rows: ``[2 S, H]`` row indices: half 0 of each of S cuts, then half 1 of each.
        rest: ``[2 S, H]``, the other half of each.
    """

    rows: Tensor
    rest: Tensor


def draw_halves(
    labels: Tensor, pairs: Tensor | None, cuts: int, most_rows: int, seed: int
) -> Halves | None:
    """Cut at random, both labels in both halves; ``None`` where a half would lack two of a label.

    Sets of more than ``most_rows`` examples are thinned first, so that the cost stays bounded.
    All halves have the same number of rows, so one or a few rows may be left out of a cut.
    """
    groups = strata_of(labels, pairs)
    generator = torch.Generator().manual_seed(seed)
    share = min(1.0, most_rows / len(labels))
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(cuts):
        halves: tuple[list[int], list[int]] = ([], [])
        turn = 0  # runs on from stratum to stratum: single units do not all go to one side
        for units in groups:
            order = torch.randperm(len(units), generator=generator, device="cpu").tolist()
            for unit in order[: max(1, round(share * len(units)))]:
                halves[turn % 2].extend(units[unit])
                turn += 1
        for side, half in zip(sides, halves):
            side.append(integers(half))
    width = min(len(half) for side in sides for half in side)
    first, second = (torch.stack([_cut_to(width, h, labels) for h in side]) for side in sides)
    rows, rest = torch.cat([first, second]), torch.cat([second, first])
    ones = labels[rows].sum(dim=1)
    enough = width >= 4 and int(ones.min()) >= 2 and int((width - ones).min()) >= 2
    return Halves(rows, rest) if enough else None


def _cut_to(width: int, half: Tensor, labels: Tensor) -> Tensor:
    """``width`` rows of a half, with its labels in their proportion."""
    place = torch.zeros(len(half), dtype=torch.float64, device="cpu")
    for label in (0, 1):
        mine = labels[half] == label
        count = int(mine.sum())
        place[mine] = torch.arange(count, dtype=torch.float64, device="cpu") / max(count, 1)
    return half[place.argsort(stable=True)[:width]].sort().values


def refit(
    codes: Tensor, labels: Tensor, halves: Halves, method: str, rfm: RFM
) -> dict[str, float | None]:
    """Fit on each half of ``codes [N, d_T]``, judge on the other; all halves are one batch.

    Returns:
        ``auc``: mean over all halves, on the rows that a fit did not see. ``stability``: mean
        over the cuts of the cosine between the directions of their two halves;
        ``stability_low``: the least of them. ``share``: mean share that the first eigenvalue has
        in the trace of the AGOP (method ``"rfm"``), ``None`` where rounding hides it.

    Raises:
        ValueError: states without a direction to find.
    """
    y = labels.to(codes.dtype)
    given, unseen = codes[halves.rows], codes[halves.rest]  # [2 S, H, d_T]
    found: dict[str, float | None] = {"share": None}
    if method == "rfm":
        machine = rfm.unfitted()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a raised ridge: the fit on all rows says so
            machine.fit(given, y[halves.rows].unsqueeze(-1))
        directions, scores = machine.direction_, machine.predict(unseen).squeeze(-1)
        shares = machine.directions(1).explained.double()
        # A share above one is rounding: the trace of nearly coinciding rows cancels.
        found["share"] = float(shares.mean()) if bool((shares <= 1.001).all()) else None
    else:
        directions = torch.stack(
            [simple_direction(x, labels[r], method) for x, r in zip(given, halves.rows)]
        )
        scores = torch.einsum("shd,sd->sh", unseen, directions)
    found["auc"] = float(auc(scores, y[halves.rest]).mean())
    cosines = torch.cosine_similarity(*directions.double().chunk(2), dim=1)
    return found | {"stability": float(cosines.mean()), "stability_low": float(cosines.min())}
