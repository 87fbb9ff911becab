"""The fits of a whole batch: which one serves which problem, within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .fits import Fits
from .spectrum import Directions


@dataclass
class Kept:
    """Fits of a chunk and the problems of the chunk that they were the best for."""

    fits: Fits
    problems: Tensor  # [K], places in the chunk
    rows: Tensor  # [K], places in the batch of ``fits``


@dataclass
class Part:
    """A chunk of problems, fitted."""

    where: slice
    mean: Tensor  # [Q, 1, D]
    kept: list[Kept]
    values: Tensor | None  # [S, fits, Q], the validation metric at every setting
    chosen: Tensor  # [Q]
    direction: Tensor | None = None  # [Q, D], of the kept fits

    def gather(self, function: Callable[[Fits], Tensor]) -> Tensor:
        """``function(fits) [B, ...]`` of each problem's own fits, ``[Q, ...]``."""
        out = None
        for kept in self.kept:
            values = function(kept.fits)[kept.rows]
            out = values.new_empty(len(self.mean), *values.shape[1:]) if out is None else out
            out[kept.problems] = values
        return out


class Collection:
    """Parts in the order of their problems.

    Steps that do not fit ``room`` (bytes) are forgotten, and computed again, to the same bits, when
    a prediction asks for them.
    """

    def __init__(self, batch: int, room: int):
        self.batch, self.parts = batch, []
        self._room = room

    def add(self, part: Part) -> None:
        self.parts.append(part)
        # The direction is wanted in any case, and the steps are here now.
        part.direction = part.gather(lambda fits: fits.directions(1, explained=False).vectors)[:, 0]
        for kept in part.kept:
            self._room -= kept.fits.bytes
            if self._room < 0:
                kept.fits.forget()

    def gather(self, function: Callable[[Fits], Tensor]) -> Tensor:
        return torch.cat([part.gather(function) for part in self.parts])

    @property
    def direction(self) -> Tensor:
        return torch.cat([part.direction for part in self.parts])

    @property
    def best(self) -> Tensor:
        return self.gather(lambda fits: fits.best)

    @property
    def bandwidth(self) -> Tensor:
        """Of the kept fit, ``[B]``."""
        return self.gather(
            lambda fits: fits.bandwidths.gather(0, fits.best.unsqueeze(0))[0]  # [fits, B]
        )

    @property
    def ridges(self) -> Tensor:
        """Taken by every fit, ``[fits, B]``."""
        return self.gather(lambda fits: torch.stack(fits.ridges, dim=1)).mT

    @property
    def asked(self) -> Tensor:
        """The reg of each problem, ``[B]``."""
        return self.gather(lambda fits: fits.reg)

    @property
    def grid_values(self) -> Tensor | None:
        """The validation metric at every setting, ``[S, fits, B]``."""
        if self.parts[0].values is None:
            return None
        return torch.cat([part.values for part in self.parts], dim=2)

    @property
    def chosen(self) -> Tensor:
        return torch.cat([part.chosen for part in self.parts])

    @property
    def metrics(self) -> list[Tensor]:
        """Of every fit of the chosen setting, each ``[B]``."""
        if self.parts[0].values is None:
            return []
        return list(self.gather(lambda fits: torch.stack(fits.metrics, dim=1)).mT)

    def predict(self, X: Tensor) -> Tensor:
        outputs = []
        for part in self.parts:
            new = X[part.where].to(part.mean) - part.mean
            outputs.append(part.gather(lambda fits, new=new: fits.predict(new)))
        return torch.cat(outputs)

    def directions(self, k: int) -> Directions:
        found: list[list[Tensor]] = []
        for part in self.parts:
            memo: dict[int, Directions] = {}

            def of(fits: Fits, i: int, memo=memo) -> Tensor:
                if id(fits) not in memo:
                    memo[id(fits)] = fits.directions(k)
                return memo[id(fits)][i]

            found.append([part.gather(lambda fits, i=i: of(fits, i)) for i in range(3)])
        return Directions(*(torch.cat(values) for values in zip(*found)))
