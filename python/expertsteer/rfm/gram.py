"""The Gram regime: everything but the last product happens in n x n matrices.

With the points centred, all that an iteration needs is ``P = X M X^T``:

    D_ij = sqrt(P_ii + P_jj - 2 P_ij)      K = exp(-D / L)      alpha = (K + reg 1)^-1 y
    W_ij = K_ij / (L D_ij)                 T_c = diag(W alpha_c) - W diag(alpha_c)
    P <- sum_c (T_c P)^T (T_c P)

because the gradients of output c at the points are the rows of ``-T_c X M``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from ..ops import backends_of, choose
from ..ops.rfm import native
from .fits import Fits, require_gradients
from .metrics import score
from .problem import Problems
from .settings import Options, Setting, columns
from .solve import solve_raising_ridge
from .spectrum import (
    ASYMMETRY,
    Directions,
    Eigenpairs,
    Seen,
    chain,
    gradients_seen,
    lanczos,
    noise_like,
)
from .steps import Rows, Step, select


class Operations:
    """The implementations that serve one fit, chosen once."""

    def __init__(self, backend: str, like: Tensor):
        def chosen(name: str):
            # A backend that has no kernel for the lesser operations leaves those to "auto".
            offered = backend if backend in backends_of(name) else "auto"
            return choose(name, offered, like.device, like.dtype)

        self.gram, self.median_distance = chosen("gram"), chosen("median_distance")
        self.laplace, self.agop = chosen("laplace"), chosen("agop")
        self.ridge_solve, self.gradient_rows = chosen("ridge_solve"), chosen("gradient_rows")
        self._cross_gram, self.inner = chosen("cross_gram"), chosen("inner")
        self.times_transposed = chosen("times_transposed")
        self.reuses_buffers = self.laplace is native.laplace

    def cross_gram(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        return self._cross_gram(left, right, *([out] if self.reuses_buffers else []))


class Opening:
    """What fits of the same problems with other settings share: the Gram matrix and its scale."""

    def __init__(self, points: Tensor, sizes: Tensor | None, operations: Operations):
        self.points, self.sizes, self.ops = points, sizes, operations

    @cached_property
    def gram(self) -> Tensor:
        """``P_0 [Q, n, n]``: the metric starts as the identity."""
        return self.ops.gram(self.points)

    @cached_property
    def median(self) -> Tensor:
        return self.ops.median_distance(self.gram, self.sizes)


class GramFits(Fits):
    """All fits of Q problems under p settings each, as one batch of B = Q p n x n problems."""

    def __init__(
        self, opening: Opening, y: Tensor, settings: tuple[Setting, ...], options: Options
    ):
        self.opening, self.ops, self.options = opening, opening.ops, options
        self.points = opening.points
        self.repeat = len(settings)
        self.y, self.sizes = repeated(y, self.repeat), repeated(opening.sizes, self.repeat)
        self.factor, self.reg, self.centre = columns(settings, len(y), self.points)
        self.steps: list[Step] = []
        self.metrics: list[Tensor] = []
        self.ridges: list[Tensor] = []
        self._bandwidths: list[Tensor] = []
        self.best = self.points.new_full((len(self.y),), options.iters, dtype=torch.int64)

    def run(self, held: Problems | None = None) -> GramFits:
        self._iterate(held)
        self.keep_best(self.options.tuning_metric)
        return self

    def _iterate(self, held: Problems | None) -> None:
        rows = None
        if held is not None:
            rows = Rows(held.X, self.points).repeated(self.repeat)
            y_val, val_sizes = repeated(held.y, self.repeat), repeated(held.sizes, self.repeat)
        gram = repeated(self.opening.gram, self.repeat)
        if self.options.normalize == "max":
            seen = repeated(self.points.mT.contiguous(), self.repeat)  # (X M_t)^T
        kernel = torch.empty_like(gram)  # K, its factor, then T
        for t in range(self.options.iters + 1):
            step, weights = self._fit(t, gram, kernel)
            self.options.tick(len(self.y))
            self.steps.append(step)
            if rows is not None:
                outputs = rows.predict(step)
                measured = score(self.options.tuning_metric, outputs, y_val, val_sizes)
                self.metrics.append(measured.to(outputs))
            if t == self.options.iters:
                break
            gram, step.carry = self._agop(t, gram, weights, step.alpha, kernel)
            if self.options.normalize == "max":
                last = t + 1 == self.options.iters
                seen, step.rescale = self._normalised(step, seen, last)
                gram = gram.div_(step.rescale.view(-1, 1, 1))
            self._require_gradients(gram)
            if rows is not None:
                rows.advance(step)

    @property
    def bytes(self) -> int:
        n = self.points.shape[1]
        matrices = self.options.iters * (1 + self.y.shape[2]) + 1
        return matrices * len(self.y) * n * n * self.y.element_size()

    def forget(self) -> None:
        self.steps = []
        vars(self.opening).pop("gram", None)

    @contextmanager
    def _steps_at_hand(self) -> Iterator[None]:
        """Computes what `forget` dropped again, and drops it after use; no choice changes."""
        if self.steps:
            yield
            return
        ridges, bandwidths = self.ridges, self._bandwidths
        self._iterate(None)
        self.ridges, self._bandwidths = ridges, bandwidths
        yield
        self.forget()

    def _fit(self, t: int, gram: Tensor, kernel: Tensor) -> tuple[Step, Tensor | None]:
        bandwidth = self.factor
        if self.options.bandwidth_mode == "median":
            if t == 0:
                median = repeated(self.opening.median, self.repeat)
            else:
                median = self.ops.median_distance(gram, self.sizes)
            bandwidth = self.factor * median.clamp(min=torch.finfo(gram.dtype).tiny)
        last = t == self.options.iters  # has no successor, so no use for the gradient's weights
        weights = torch.empty_like(gram) if self.ops.reuses_buffers and not last else None

        def fresh() -> Tensor:
            nonlocal weights
            if self.ops.reuses_buffers:
                native.laplace_into(gram, bandwidth, self.sizes, kernel, weights)
                return kernel
            out, weights = self.ops.laplace(gram, bandwidth, self.sizes)
            return out

        alpha, ridge = solve_raising_ridge(fresh, self.y, self.reg, self.ops.ridge_solve)
        self.ridges.append(ridge)
        self._bandwidths.append(bandwidth)
        diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
        return Step(diagonal, alpha, bandwidth), weights

    def _agop(self, t: int, gram: Tensor, weights: Tensor, alpha: Tensor, kernel: Tensor):
        if not self.ops.reuses_buffers:
            return self.ops.agop(gram, weights, alpha, self.centre, self.sizes)
        # P_0 stays: directions are orthogonal in its inner product.
        out = None if t == 0 and self.repeat == 1 else gram
        return self.ops.agop(gram, weights, alpha, self.centre, self.sizes, out=out, scratch=kernel)

    def _require_gradients(self, gram: Tensor) -> None:
        """A fit without any gradient, or one that overflowed, has no direction to give."""
        largest = gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
        # A Gram matrix is finite if its diagonal is: |P_ij|^2 <= P_ii P_jj.
        lost = ~(torch.isfinite(gram.diagonal(dim1=-2, dim2=-1)).all(dim=-1) & (largest > 0))
        require_gradients(lost, self.factor, self.options.bandwidth_mode)

    def _normalised(self, step: Step, seen: Tensor, last: bool) -> tuple[Tensor | None, Tensor]:
        """``(X M_{t+1})^T`` from ``(X M_t)^T [B, d, n]``, and what M_{t+1} was divided by.

        M is positive semidefinite, so its largest entry lies on the diagonal, which the gradients
        give without forming M.
        """
        carry = step.carry
        rows = self.ops.gradient_rows(
            carry.weights, carry.alpha, seen.mT, self.centre, self.sizes
        ).mT  # (T_c X M)^T, [B, C, d, n]
        lengths = torch.linalg.vector_norm(rows, dim=-1)  # [B, C, d]
        largest = lengths.square().sum(dim=1).amax(dim=-1)  # [B]
        largest = largest.clamp(min=torch.finfo(largest.dtype).tiny)
        if last:  # nobody asks for the next one
            return None, largest
        following = sum(
            self.ops.times_transposed(rows[:, c], carry.rows[:, c].mT) for c in range(rows.shape[1])
        )
        return following.div_(largest.view(-1, 1, 1)), largest

    def predict(self, new: Tensor) -> Tensor:
        with self._steps_at_hand():
            return self._predict(new)

    def _predict(self, new: Tensor) -> Tensor:
        rows, outputs = Rows(new, self.points).repeated(self.repeat), None
        last = int(self.best.max())
        for t, step in enumerate(self.steps[: last + 1]):
            outputs = select(self.best, t, rows.predict(step), outputs)
            if t < last:
                rows.advance(step)
        return outputs

    def _inner(self, vector: Tensor) -> Tensor:
        """``P_0 v`` for ``[B, n]``, scaled to a largest diagonal entry of one."""
        gram = self.opening.gram
        scale = gram.diagonal(dim1=-2, dim2=-1).amax(dim=-1).view(-1, 1, 1)
        return (vector.view(len(gram), self.repeat, -1) @ gram / scale).view(vector.shape)

    def directions(self, count: int, explained: bool = True) -> Directions:
        with self._steps_at_hand():
            return self._directions(count, explained)

    def _directions(self, count: int, explained: bool) -> Directions:
        # M_b is the AGOP of fit b - 1; the identity has no direction, so fit 0 uses its own.
        depth = self.best.clamp(min=1)
        (vectors, values, asymmetry), logs = self._through_chain(count, depth)
        drowned = bool((asymmetry > ASYMMETRY).any())
        seen = None
        if drowned or explained:
            points = repeated(self.points, self.repeat)
            seen = gradients_seen(self.steps, depth, points, axes=drowned)
        if drowned:
            (vectors, values, _), logs = self._along_axes(count, seen), seen.log
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        values = values.clamp(min=0).double()
        share = torch.full_like(values, float("nan"))
        if explained:
            share = values * (logs - seen.log_trace()).exp().unsqueeze(-1)
        return Directions(self.signed(vectors), values * logs.exp().unsqueeze(-1), share)

    def _through_chain(self, count: int, depth: Tensor) -> tuple[Eigenpairs, Tensor]:
        """Eigenvectors in d dimensions from n x n products alone, and the logarithm of the factor
        that the values lack."""
        apply, logs = chain(self.steps, depth)
        # Through the map once, so that no coefficient is left where the metric sees nothing: a huge
        # row would carry its rounding into the direction.
        start = apply(self.steps[0].alpha[..., 0] + noise_like(self.steps[0].alpha[..., 0]))
        found = lanczos(self._inner, apply, count, start, ASYMMETRY)
        points = self.points
        joined = found.vectors.reshape(len(points), -1, points.shape[1])
        vectors = (joined @ points).view(len(depth), -1, points.shape[2])
        return found._replace(vectors=vectors), logs

    def _along_axes(self, count: int, seen: Seen) -> Eigenpairs:
        """The same from the gradients themselves, for the factor ``exp(seen.log)``."""
        start = noise_like(seen.factors[0][..., 0] * 0 + 1)
        found = lanczos(lambda vector: vector, seen.apply, count, start)
        return found if seen.axes is None else found._replace(vectors=found.vectors @ seen.axes.mT)


def repeated(tensor: Tensor | None, times: int) -> Tensor | None:
    """Every problem of a batch ``times`` times in a row; the same tensor for once."""
    return tensor if tensor is None or times == 1 else tensor.repeat_interleave(times, dim=0)
