"""How far a steered model's predictions on neutral text are from the unsteered model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.batches import common_end, length_batches, padded
from ..models.description import embedded
from ..models.encoding import encode
from ..models.forward import evaluating, logits, longest
from ..support.tensors import as_tensor

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
            text counted once per strength.

    Attributes:
        passes: how often all texts went through the model, counting each strength for itself.
        sweeps: how often they did when a batch of strengths counts as one.
    """

    def __init__(
        self, model: nn.Module, texts: NeutralTexts, measure: str, groups: int, batch_size: int
    ):
        self.model, self.texts, self.measure = model, texts, measure
        self.passes = self.sweeps = 0
        lengths = list(map(len, texts.rows))
        self.batches = length_batches(lengths, max(1, batch_size // (groups + 1)))
        self.reference: list[list[Tensor]] | None = None  # per batch, per text
        vocabulary = embedded(model)
        self.keeps = vocabulary is not None and texts.tokens * vocabulary * 8 <= _KEPT_BYTES

    @property
    def next_cost(self) -> int:
        """Passes that the next call takes beside one for each of its strengths."""
        return 0 if self.reference is not None else 1

    def __call__(self, steering: Any, name: Any, strengths: Sequence[float]) -> list[float]:
        """Mean divergence of each strength of the vectors ``name``; infinite where it is NaN.

        ``steering`` is attached in slots at strength 1; its rows are set here.
        """
        fresh = self.reference is None
        self.passes += len(strengths) + fresh
        self.sweeps += 1
        total, count, kept = [0.0] * len(strengths), 0, []
        with torch.inference_mode(), evaluating(self.model):
            for i, indices in enumerate(self.batches):
                rows = [self.texts.rows[j] for j in indices]
                groups = [None] * fresh + [name] * len(strengths)
                factors = [0.0] * fresh + list(strengths)
                chosen = [group for group in groups for _ in rows]
                steering.set_rows(chosen, [f for f in factors for _ in rows])
                scores = self._scores(rows, len(groups))
                before = next(scores) if fresh else self.reference[i]
                if fresh and self.keeps:
                    kept.append(before)
                count += sum(map(self._places, rows))
                for g, after in enumerate(scores):
                    pairs = zip(before, after, rows)
                    total[g] += sum(self._difference(a, b, row) for a, b, row in pairs)
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
        with torch.inference_mode(), evaluating(self.model):
            for indices in self.batches:
                rows = [self.texts.rows[i] for i in indices]
                longer = [prefixed[i] for i in indices]
                before = next(self._scores(rows, 1))
                after = next(self._scores(longer, 1))
                for row, long, a, b in zip(rows, longer, before, after):
                    # The token before the shared ones, if there is any, predicts the first of them.
                    shared = min(common_end(row, long) + 1, len(row))
                    total += self._difference(a[-shared:], b[-shared:], row[-shared:])
                    count += self._places(row[-shared:])
        return total / count

    def _scores(self, rows: Sequence[Sequence[int]], groups: int):
        """Per group a list of ``[tokens, vocabulary]`` log-probabilities, one entry per text."""
        ids, mask = padded(rows)
        out = logits(self.model, ids.repeat(groups, 1), mask.repeat(groups, 1))
        for group in out.view(groups, len(rows), *out.shape[1:]):
            yield [self._log_softmax(s[: len(row)]) for s, row in zip(group, rows)]

    def _log_softmax(self, scores: Tensor) -> Tensor:
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=-1)

    def _places(self, row: Sequence[int]) -> int:
        return len(row) if self.measure == "kl" else len(row) - 1

    def _difference(self, before: Tensor, after: Tensor, row: Sequence[int]) -> float:
        """Summed over the tokens of one text."""
        if self.measure == "kl":
            chance = before.exp()
            terms = chance * (before - after)
            # A token that cannot come adds nothing, whatever its logarithm.
            each = terms.masked_fill_(chance == 0, 0.0).sum(dim=-1, dtype=torch.float64)
            return float(each.clamp_min(0).sum()) if not each.isnan().any() else float("nan")
        told = torch.tensor(row[1:], dtype=torch.int64, device=before.device).unsqueeze(1)
        change = before[:-1].gather(1, told) - after[:-1].gather(1, told)
        return float(change.sum(dtype=torch.float64))
