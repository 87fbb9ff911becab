"""One chunk of problems under every setting: what is shared, what is tried, what is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.tensors import integers
from .collection import Kept, Part
from .feature import FeatureFits
from .fits import Fits, NoGradientError
from .gram import GramFits, Opening, Operations
from .metrics import better
from .plan import Plan
from .problem import Problems, centre
from .settings import Options, Setting
from .streamed import StreamedFits


def fit_parts(
    where: slice, given: Problems, held: Problems | None, settings: tuple[Setting, ...], *shared
) -> list[Part]:
    """The chunk in lockstep; one problem at a time where a setting fails for some of them."""

    def fitted(chunk: slice) -> Part:
        kept = None if held is None else held.part(chunk)
        return fit_part(chunk, given.part(chunk), kept, settings, *shared)

    try:
        return [fitted(where)]
    except NoGradientError:
        if len(settings) == 1 or where.stop - where.start == 1:
            raise
        return [fitted(slice(b, b + 1)) for b in range(where.start, where.stop)]


def fit_part(
    where: slice,
    given: Problems,
    held: Problems | None,
    settings: tuple[Setting, ...],
    options: Options,
    operations: Operations,
    plan: Plan,
) -> Part:
    """Fit every setting on the problems of a chunk; keep, per problem, the best on ``held``.

    A setting of a grid without gradients (a bandwidth far too small) is passed over, with NaN for
    its figures, where the chunk is one problem.

    Raises:
        NoGradientError: no setting has gradients, or one of them has none for some of several
            problems.
    """
    points, mean = centre(given.X, given.sizes)
    if held is not None:
        held = Problems(held.X - mean, held.y, held.sizes)
    shared = Opening(points, given.sizes, operations) if plan.regime == "gram" else None
    step = plan.settings_at_once
    groups = [settings[first : first + step] for first in range(0, len(settings), step)]
    best = _Best(len(points), options)
    while groups:
        group = groups.pop(0)
        if shared is not None:
            fits: Fits = GramFits(shared, given.y, group, options)
        elif plan.regime == "feature":
            fits = FeatureFits(points, given, group[0], options, operations)
        else:
            fits = StreamedFits(points, given, group[0], options, operations, plan)
        try:
            fits.run(held)
        except NoGradientError as failed:
            if len(settings) == 1 or len(points) > 1:
                raise
            if len(group) > 1:  # find out which of them it was
                groups = [(s,) for s in group] + groups
            else:
                best.skip(failed)
        else:
            best.offer(fits, len(group))
    best.require_one()
    return Part(where, mean, best.kept(), best.values(), best.chosen)


class _Best:
    """The fits that are the best so far for some problem; the others are let go."""

    def __init__(self, problems: int, options: Options):
        self.metric, self.fits = options.tuning_metric, options.iters + 1
        self.failed: NoGradientError | None = None
        self.problems = problems
        self.owner: list[tuple[Fits, int] | None] = [None] * problems  # fits, row in their batch
        self.score = torch.full((problems,), -torch.inf, dtype=torch.float64, device="cpu")
        self.chosen = torch.zeros(problems, dtype=torch.int64, device="cpu")
        self.seen = 0
        self.all: list[Tensor] = []

    def offer(self, fits: Fits, settings: int) -> None:
        if fits.metrics:
            table = torch.stack(fits.metrics).view(len(fits.metrics), -1, settings)
            self.all += [table[..., s] for s in range(settings)]
        for s in range(settings):
            for q in range(self.problems):
                row = q * settings + s
                value = 0.0
                if fits.metrics:
                    value = float(better(self.metric, table[:, q, s]).max())
                if self.owner[q] is None or value > self.score[q]:
                    self.owner[q], self.score[q] = (fits, row), value
                    self.chosen[q] = self.seen + s
        self.seen += settings

    def skip(self, failed: NoGradientError) -> None:
        self.failed = failed
        unknown = torch.full(
            (self.fits, self.problems), torch.nan, dtype=torch.float64, device="cpu"
        )
        self.all.append(unknown)
        self.seen += 1

    def require_one(self) -> None:
        if None in self.owner:
            raise self.failed

    def kept(self) -> list[Kept]:
        groups: dict[int, tuple[Fits, list[int], list[int]]] = {}
        for q, (fits, row) in enumerate(self.owner):
            _, problems, rows = groups.setdefault(id(fits), (fits, [], []))
            problems.append(q)
            rows.append(row)
        return [Kept(fits, integers(p), integers(r)) for fits, p, r in groups.values()]

    def values(self) -> Tensor | None:
        return torch.stack([t.cpu().double() for t in self.all]) if self.all else None
