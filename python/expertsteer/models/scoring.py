"""What a model makes of given texts: the continuation it believes in, and its loss.

Every function takes the model as it is, steered or not. Outside ``generate`` a steered model takes
the whole text for its prompt; give ``Steering.set`` a ``prompt_length`` where that is not meant.
Soft prompts and prefixes of a model are read and never scored.
`statistics` says how sure one can be of what they give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ..support.progress import progress
from .batches import common_end, length_batches, padded
from .decoder import require_decoder_only
from .description import embedded
from .encoding import behind_prompt, encode
from .forward import evaluating, fitting_rows, heads_where_asked, logits

__all__ = ["choice_probabilities", "mean_loss"]

# Token ids, and the place from which on they are scored.
Scored = tuple[list[int], int]


def choice_probabilities(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    choices: Sequence[str] | Sequence[Sequence[str]],
    batch_size: int = 64,
) -> Tensor:
    """How a model divides its belief between given continuations of each prompt.

        p_c = softmax_c sum_i log P(token i of choice c | prompt, tokens before it)

    Args:
        prompts: N texts.
        choices: C continuations for all prompts, or one list of C for each. They are appended as
            they are, so most need a leading space.
        batch_size: token sequences per forward pass; choices of one token share theirs.

    Returns:
        ``[N, C]`` float64, every row sums to 1. Longer choices are not favoured or forgiven: the
        log-probabilities are summed, not averaged.

    Raises:
        ValueError: no prompts, lists of different lengths, fewer than two choices, an empty or
            repeated choice, a prompt without tokens.
    """
    table = _choice_table(prompts, choices)
    sequences = []
    for prompt, scored in zip(prompts, choice_sequences(tokenizer, prompts, table)):
        if not scorable(scored):
            raise ValueError(
                f"prompts: {prompt!r} shares no first token with its continuations, or a choice "
                "adds none; the tokenizer should add a beginning-of-sequence token, or the prompt "
                "be longer"
            )
        sequences += scored
    total = log_probabilities(model, sequences, batch_size)
    return total.view(len(table), -1).softmax(dim=1)


def mean_loss(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int = 64,
    *,
    context: str = "",
) -> Tensor:
    """Cross-entropy of each text in nats per token, the first token excepted: ``[N]`` float64.

    Args:
        context: text put before each, read and not scored: the same tokens count as without it.

    Raises:
        ValueError: no texts, or one with fewer than two tokens.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts must be a non-empty list of texts, came {texts!r}")
    rows = encode(tokenizer, texts)
    for text, ids in zip(texts, rows):
        if len(ids) < 2:
            raise ValueError(
                f"texts: {text!r} has {len(ids)} tokens, a loss needs at least 2; drop it"
            )
    sequences = behind(tokenizer, rows, texts, context)
    scored = [len(ids) - start for ids, start in sequences]
    total = log_probabilities(model, sequences, batch_size)
    return -total / torch.tensor(scored, dtype=torch.float64, device="cpu")


def choice_sequences(
    tokenizer: Any, prompts: Sequence[str], table: Sequence[Sequence[str]]
) -> Iterator[list[Scored]]:
    """For each prompt one scored sequence per choice; the numbers of choices may differ.

    Where a tokenizer merges across the boundary, all choices are scored from the last token that
    they share with the prompt: the same text for each.
    """
    texts = [p + choice for p, row in zip(prompts, table) for choice in ("", *row)]
    encoded = iter(encode(tokenizer, texts))
    for _, row in zip(prompts, table):
        context, whole = next(encoded), list(islice(encoded, len(row)))
        start = min(_shared_length(context, ids) for ids in whole)
        yield [(ids, start) for ids in whole]


def scorable(choices: Sequence[Scored]) -> bool:
    """Whether something is read before the choices and each of them adds at least one token."""
    return min(start for _, start in choices) >= 1 and all(len(ids) > s for ids, s in choices)


def behind(
    tokenizer: Any, rows: Sequence[list[int]], texts: Sequence[str], context: str
) -> list[Scored]:
    """Texts (their token ids are ``rows``) behind a context, scored from their second token on.

    Raises:
        ValueError: a context that leaves no token of a text as it was.
    """
    longer = [behind_prompt(tokenizer, context, text) for text in texts]
    whole = encode(tokenizer, longer) if context else rows
    pairs = zip(rows, whole, strict=True)
    scored = [min(common_end(ids, all_ids), len(ids) - 1) for ids, all_ids in pairs]
    if min(scored) < 1:
        raise ValueError(f"context {context!r} merges with a text; let it end in a space or line")
    return [(ids, len(ids) - count) for ids, count in zip(whole, scored, strict=True)]


def _choice_table(prompts, choices) -> list[list[str]]:
    """One list of choices per prompt, all of one length."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts must be a non-empty list of texts, came {prompts!r}")
    if isinstance(choices, str) or not len(choices):
        raise ValueError(f"choices must be a list of texts or of such lists, came {choices!r}")
    shared = isinstance(choices[0], str)
    table = [list(choices)] * len(prompts) if shared else [list(row) for row in choices]
    if len(table) != len(prompts) or len({len(row) for row in table}) > 1:
        raise ValueError(
            f"choices must hold one list of the same length for each of the {len(prompts)} "
            f"prompts, came {len(table)} lists of {sorted({len(row) for row in table})}"
        )
    for row in table:
        if len(row) < 2 or "" in row or len(set(row)) < len(row):
            raise ValueError(f"choices must be two or more different, non-empty texts, came {row}")
    return table


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def log_probabilities(
    model: nn.Module, sequences: Sequence[Scored], batch_size: int, bar: str | None = None
) -> Tensor:
    """``[S]`` float64: log-probability of ``ids[start:]`` given ``ids[:start]``, per (ids, start).

    The last token is never read, only predicted; sequences that differ in nothing else share one
    pass. The head runs from the first place on that a batch is scored at, where the model can be
    told so.

    Args:
        batch_size: sequences per forward pass, and so few that their logits take at most 512 MiB
            in single precision, or are one sequence's.
        bar: what a progress bar over the batches says; ``None`` shows none.
    """
    require_decoder_only(model)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, came {batch_size}")
    readers: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, (ids, start) in enumerate(sequences):
        readers.setdefault((start, tuple(ids[:-1])), []).append(row)
    inputs = list(readers)
    total = torch.zeros(len(sequences), dtype=torch.float64, device="cpu")
    vocabulary, told_where = embedded(model), heads_where_asked(model)

    def first(batch: Sequence[int]) -> int:
        return min(inputs[i][0] for i in batch) - 1

    def fits(batch: Sequence[int]) -> bool:
        places = max(len(inputs[i][1]) for i in batch) - (first(batch) if told_where else 0)
        return len(batch) <= fitting_rows(places, vocabulary)

    with torch.inference_mode(), evaluating(model):
        batches = length_batches([len(ids) for _, ids in inputs], batch_size, fits)
        for batch in progress(batches, bar or "", bar is not None):
            skipped = first(batch)
            out = logits(model, *padded([inputs[i][1] for i in batch]), skipped)
            for i, scores in zip(batch, out):  # [T - skipped, V]
                start, ids = inputs[i]
                scores = scores[start - 1 - skipped : len(ids) - skipped]
                scores = scores.float().log_softmax(dim=-1).cpu()
                told = torch.tensor(ids[start:], dtype=torch.int64, device="cpu").view(-1, 1)
                path = scores[:-1].gather(1, told).double().sum()
                rows = readers[inputs[i]]
                last = [sequences[row][0][-1] for row in rows]
                total[rows] = path + scores[-1, last].double()
    return total
