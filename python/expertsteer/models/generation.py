"""Text that a model writes in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..support.progress import progress
from ..support.tensors import as_tensor
from .batches import length_batches, padded
from .decoder import require_decoder_only, unwrapped
from .forward import before_text, evaluating, input_device


def generate_texts(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    bar: str | None = None,
) -> list[str]:
    """What the model, as it is, writes behind each row of token ids, greedily.

    Rows are padded on the left and masked; where the model has a soft prompt, padding would stand
    between it and the text, and only rows of one length share a batch. Special tokens are left out
    of the text, which ends before the first of the texts ``stop``.
    """
    require_decoder_only(model)
    model = unwrapped(model)
    texts = [""] * len(rows)
    batches, ends = length_batches(list(map(len, rows)), batch_size), _ends(model)
    criterion = _stop_criterion(tokenizer, stop)
    if any(before_text(model)):
        batches = [same for batch in batches for same in _of_one_length(batch, rows)]
    with torch.inference_mode(), evaluating(model):
        for batch in progress(batches, bar or "", bar is not None):
            ids, mask = padded([rows[i] for i in batch], "left")
            options: dict[str, Any] = {}
            if criterion is not None:
                options["stopping_criteria"] = [_behind_prompt(criterion, ids.shape[1])]
            device = input_device(model)
            written = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=_padding(model, tokenizer),
                **options,
            )
            for i, row in zip(batch, written[:, ids.shape[1] :].tolist()):
                row = row[: next((k for k, token in enumerate(row) if token in ends), None)]
                texts[i] = before_stop(tokenizer.decode(row, skip_special_tokens=True), stop)
    return texts


def _of_one_length(batch: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """A batch in parts whose rows need no padding; the batch goes from long to short."""
    return [list(part) for _, part in groupby(batch, key=lambda i: len(rows[i]))]


def before_stop(written: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    places = [place for s in stop if (place := written.find(s)) >= 0]
    return written[: min(places)] if places else written


def _stop_criterion(tokenizer: Any, stop: Sequence[str]) -> Callable[..., Tensor] | None:
    """Which rows of tokens end in a stop text, as transformers finds it; ``None`` where it cannot.

    It cannot with a vocabulary that spells no text beside its own words, or not this one. The rows
    are then written to the end, and the text is cut all the same.
    """
    from transformers import StopStringCriteria

    try:
        return StopStringCriteria(tokenizer, list(stop)) if stop else None
    except ValueError:
        return None


def _behind_prompt(criterion: Callable[..., Tensor], prompt: int) -> Callable[..., Tensor]:
    """The criterion of what is written alone: a stop text that a prompt begins is none."""
    return lambda ids, scores, **_: criterion(ids[:, prompt:], scores)


def _ends(model: nn.Module) -> list[int]:
    """Tokens that end a text, so that nothing behind them is read."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else as_tensor(ends).flatten().tolist()


def _padding(model: nn.Module, tokenizer: Any) -> int:
    """What ``generate`` writes behind a row that has ended; never read, so any token serves."""
    config = getattr(model, "generation_config", None)
    known = (getattr(tokenizer, "pad_token_id", None), getattr(config, "pad_token_id", None))
    return next((int(i) for i in known if isinstance(i, int)), 0)
