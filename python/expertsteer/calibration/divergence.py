"""How far a steered model's predictions on neutral text are from the unsteered model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.batches import common_end, length_batches, padded
from ..models.description import embedded
from ..models.encoding import encode
from ..models.forward import evaluating, fitting_rows, logits, longest
from ..support.tensors import as_tensor
from ..support.tracing import eagerly
from .spread import Spread

MEASURES = ("kl", "perplexity_ratio")
_KEPT_BYTES = 1 << 30  # of unsteered log-probabilities; beyond that they are computed again


@dataclass(frozen=True)
class NeutralTexts:
    """Token ids to measure on, and what of the given texts is not among them.

    Attributes:
        rows: token ids of each text.
        truncated: texts cut at the context's end; excluded: texts with too few tokens.
        places: of each row among the given texts, so that no list beside it is paired wrongly.
    """

    rows: tuple[tuple[int, ...], ...]
    truncated: int = 0
    excluded: int = 0
    places: tuple[int, ...] = ()

    def of(self, texts: Sequence[Any]) -> list[Any]:
        """Those of the given texts that the rows are of, in their order."""
        return [texts[place] for place in self.places]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def neutral_texts(
    model: nn.Module,
    texts: Sequence[Any],
    tokenizer: Any = None,
    max_length: int | None = None,
    least: int = 1,
) -> NeutralTexts:
    """Texts, or token ids, as rows that the model can read whole.

    Args:
        texts: texts, or token ids of each (lists or one-dimensional tensors).
        tokenizer: needed for texts.
        max_length: tokens kept of each, by default the model's context.
        least: tokens a row must have; shorter ones are left out and counted.

    Raises:
        ValueError: no texts, texts without a tokenizer, none long enough, token ids that the model
            does not embed.
    """
    rows = _token_rows(texts, tokenizer)
    limit = min((n for n in (max_length, longest(model)) if n is not None), default=None)
    if max_length is not None and (type(max_length) is not int or max_length < least):
        raise ValueError(
            f"max_length must be a whole number of at least {least} tokens, came {max_length!r}"
        )
    places = [i for i, row in enumerate(rows) if len(row) >= least]
    kept = [rows[i][:limit] for i in places]
    if not kept:
        raise ValueError(
            f"texts: none of the {len(rows)} has the {least} token(s) the measure needs; give "
            "longer texts"
        )
    vocabulary, largest = embedded(model), max(map(max, kept))
    if min(map(min, kept)) < 0 or (vocabulary is not None and largest >= vocabulary):
        raise ValueError(
            f"texts: token ids reach from {min(map(min, kept))} to {largest}, the model embeds "
            f"{vocabulary} tokens; pass the tokenizer that belongs to this model"
        )
    cut = 0 if limit is None else sum(len(row) > limit for row in rows)
    return NeutralTexts(tuple(map(tuple, kept)), cut, len(rows) - len(kept), tuple(places))


def _token_rows(texts: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    if isinstance(texts, (str, bytes)) or not len(texts):
        raise ValueError(f"texts must be a non-empty list of texts or token ids, came {texts!r}")
    if all(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise ValueError("tokenizer must be given with texts; or give token ids instead")
        return encode(tokenizer, texts)
    if any(isinstance(text, str) for text in texts):
        raise ValueError("texts must all be texts or all be token ids, came a mixture")
    rows = []
    for i, row in enumerate(texts):
        ids = as_tensor(row) if len(row) else torch.zeros(0, dtype=torch.int64, device="cpu")
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"texts[{i}] must be a text or whole token ids in one dimension, came "
                f"{tuple(ids.shape)} of {ids.dtype}"
            )
        rows.append(ids.tolist())
    return rows


class Divergence:
    """Measures several strengths in one batch, beside the unsteered model's own predictions.

    Args:
        measure: ``"kl"``, the mean over real tokens of KL(unsteered || steered) between
            next-token distributions; ``"perplexity_ratio"``, here as its logarithm, the
            difference of the mean losses (first tokens excepted). Both in nats per token.
        groups: strengths that are measured at once; batch_size: sequences per forward pass, each
            text counted once per strength, and so few that their logits take at most 512 MiB in
            single precision, or are one sequence's.

    Attributes:
        passes: how often all texts went through the model, counting each strength for itself.
        sweeps: how often they did when a batch of strengths counts as one.
    """

    def __init__(
        self, model: nn.Module, texts: NeutralTexts, measure: str, groups: int, batch_size: int
    ):
        self.model, self.texts, self.measure = model, texts, measure
        self.passes = self.sweeps = 0
        self._vocabulary = embedded(model)
        self._rows = max(1, batch_size // (groups + 1))
        self.batches = self._batches(list(map(len, texts.rows)), groups + 1)
        self.reference: list[list[Tensor]] | None = None  # per batch, per text
        self._spread: Spread | None = None
        size = torch.promote_types(next(model.parameters()).dtype, torch.float32).itemsize
        kept = None if self._vocabulary is None else texts.tokens * self._vocabulary * size
        self.keeps = kept is not None and kept <= _KEPT_BYTES

    @property
    def next_cost(self) -> int:
        """Passes that the next call takes beside one for each of its strengths."""
        return 0 if self.reference is not None else 1

    def spread(self, steering: Any) -> Spread:
        """The unsteered model's states at every layer, sampled once, in a pass without steering.

        Where the predictions of the unsteered model can be kept it is that pass.
        """
        if self._spread is None:
            with eagerly(), Spread(steering.decoder.layers, self.texts.tokens) as spread:
                self._measured(steering, None, (), spread)
            self._spread = spread
        return self._spread

    def __call__(self, steering: Any, name: Any, strengths: Sequence[float]) -> list[float]:
        """Mean divergence of each strength of the vectors ``name``; infinite where it is NaN.

        ``steering`` is attached in slots at strength 1; its rows are set here.
        """
        return self._measured(steering, name, strengths)

    def _measured(
        self, steering: Any, name: Any, strengths: Sequence[float], spread: Spread | None = None
    ) -> list[float]:
        fresh = self.reference is None or spread is not None
        self.passes += len(strengths) + fresh
        self.sweeps += 1
        total, count, kept = [0.0] * len(strengths), 0, []
        groups, factors = [None] * fresh + [name] * len(strengths), [0.0] * fresh + [*strengths]

        def ready(rows: Sequence[Sequence[int]], runs: slice) -> None:
            chosen = [group for group in groups[runs] for _ in rows]
            steering.set_rows(chosen, [factor for factor in factors[runs] for _ in rows])
            if spread is not None:
                spread.expect(list(map(len, rows)))

        with torch.inference_mode(), evaluating(self.model):
            for i, indices in enumerate(self.batches):
                rows = [self.texts.rows[j] for j in indices]
                if spread is not None and not self.keeps:  # no prediction is wanted
                    ready(rows, slice(1))
                    logits(self.model, *padded(rows), max(map(len, rows)) - 1)
                    continue
                scores = self._scores(rows, len(groups), ready=ready)
                before = next(scores) if fresh else self.reference[i]
                if fresh and self.keeps:
                    kept.append(before)
                count += sum(map(self._places, rows))
                chances = [self._chance(one) for one in before]
                for g, after in enumerate(scores):
                    compared = zip(before, chances, after, rows)
                    total[g] += sum(self._difference(*one) for one in compared)
        if kept:
            self.reference = kept
        means = [value / count for value in total]
        return [m if m == m else float("inf") for m in means]

    def behind(self, prefixed: Sequence[Sequence[int]]) -> float:
        """The same for the texts behind a prompt, with nothing steered.

        Args:
            prefixed: token ids of each text with the prompt before it, in the order of the texts.
                What is compared are the predictions over the tokens that both end in.
        """
        if len(prefixed) != len(self.texts.rows):
            raise ValueError(
                f"prefixed must hold the {len(self.texts.rows)} texts that are measured, in their "
                f"order, came {len(prefixed)}"
            )
        total = count = 0.0
        pairs = list(zip(self.texts.rows, prefixed))
        with torch.inference_mode(), evaluating(self.model):
            for indices in self._batches([max(map(len, pair)) for pair in pairs], 1):
                rows, longer = zip(*(pairs[i] for i in indices))
                # The token before the shared ones, if there is any, predicts the first of them.
                ends = [min(common_end(row, long) + 1, len(row)) for row, long in zip(rows, longer)]
                before, after = (
                    next(self._scores(one, first=min(len(r) - e for r, e in zip(one, ends))))
                    for one in (rows, longer)
                )
                for row, shared, a, b in zip(rows, ends, before, after):
                    a, b, row = a[-shared:], b[-shared:], row[-shared:]
                    total += self._difference(a, self._chance(a), b, row)
                    count += self._places(row)
        return total / count

    def _batches(self, lengths: Sequence[int], groups: int) -> list[list[int]]:
        """So that the logits of all groups fit; where those of one text do not, it stands alone."""

        def fits(batch: Sequence[int]) -> bool:
            most = fitting_rows(max(lengths[i] for i in batch), self._vocabulary)
            return len(batch) * groups <= most

        return length_batches(lengths, self._rows, fits)

    def _scores(
        self,
        rows: Sequence[Sequence[int]],
        runs: int = 1,
        first: int = 0,
        ready: Callable[[Sequence[Sequence[int]], slice], None] | None = None,
    ) -> Iterator[list[Tensor]]:
        """Per run a list of ``[tokens - first, vocabulary]`` log-probabilities, one per text.

        Args:
            runs: how often the texts are read, as many times in one pass as fit.
            first: the place from which on predictions are wanted.
            ready: called before each pass with the texts and the runs that it makes.
        """
        ids, mask = padded(rows)
        at_once = max(1, fitting_rows(ids.shape[1], self._vocabulary) // len(rows))
        for begin in range(0, runs, at_once):
            count = min(at_once, runs - begin)
            if ready is not None:
                ready(rows, slice(begin, begin + count))
            out = logits(self.model, ids.repeat(count, 1), mask.repeat(count, 1), first)
            for group in out.view(count, len(rows), *out.shape[1:]):
                yield [self._log_softmax(s[: len(row) - first]) for s, row in zip(group, rows)]
            del out, group  # not beside the next ones

    def _log_softmax(self, scores: Tensor) -> Tensor:
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=-1)

    def _places(self, row: Sequence[int]) -> int:
        return len(row) if self.measure == "kl" else len(row) - 1

    def _chance(self, before: Tensor) -> Tensor | None:
        """What the unsteered model gives every token, where the measure weighs by it."""
        return before.exp() if self.measure == "kl" else None

    def _difference(
        self, before: Tensor, chance: Tensor | None, after: Tensor, row: Sequence[int]
    ) -> float:
        """Summed over the tokens of one text; ``after`` is spent."""
        if chance is not None:
            # In place, and few times over the vocabulary: real ones are larger than any cache.
            terms = torch.sub(before, after, out=after).mul_(chance)
            each = terms.sum(dim=-1)
            if each.isnan().any():  # a token that cannot come adds nothing, whatever its logarithm
                each = terms.masked_fill_(chance == 0, 0.0).sum(dim=-1)
            return float(each.double().clamp_min(0).sum()) if not each.isnan().any() else math.nan
        told = torch.tensor(row[1:], dtype=torch.int64, device=before.device).unsqueeze(1)
        change = before[:-1].gather(1, told) - after[:-1].gather(1, told)
        return float(change.sum(dtype=torch.float64))
