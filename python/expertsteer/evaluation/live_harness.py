"""lm-evaluation-harness's own class around a live model, which tells the steering what it runs.

The harness pads in two ways. Where it generates, prompts are padded on the left and their mask is
given to ``generate``, from which steering reads what is padding. Where it scores continuations,
sequences are padded on the right and no mask is given at all: padding is steered like any other
token, and nothing shows of it, since in a causal model no token sees what stands behind it. With
positions other than ``"all"`` it would matter (the last place of a row may be padding, and where
the prompt ends is not told), so the mask and the prompts' lengths are supplied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..models.forward import before_text, longest, text_logits


def live_harness(
    model: nn.Module,
    tokenizer: Any,
    batch_size: int,
    max_length: int | None = None,
    *,
    plain: bool = True,
    progress: bool = True,
) -> Any:
    """The harness's ``HFLM`` around a live model.

    Args:
        plain: call the model as the harness does; else with a mask and, where ``steering`` is set,
            the lengths of the prompts.
        progress: show the harness's bars.
    """
    from lm_eval.models.huggingface import HFLM

    kind = HFLM if progress else _silent(HFLM)
    if any(before_text(model)):
        kind, max_length = _behind_soft_prompt(kind), max_length or longest(model)
    options = {"batch_size": batch_size, "max_length": max_length, "backend": "causal"}
    options["trust_remote_code"] = False  # the model is here; nothing else is to run
    if plain:
        return kind(pretrained=model, tokenizer=tokenizer, **options)
    # Requests that share a context would share a row, though their prompts may end elsewhere.
    return _masked(kind)(pretrained=model, tokenizer=tokenizer, logits_cache=False, **options)


def _silent(base: type) -> type:
    """``HFLM`` without bars, for which its methods have a switch and `simple_evaluate` has none."""

    class Silent(base):
        def loglikelihood(self, requests, disable_tqdm=False):
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=False):
            return super().generate_until(requests, disable_tqdm=True)

    return Silent


def _behind_soft_prompt(base: type) -> type:
    """``HFLM`` for a model that reads something before every text."""

    class Behind(base):
        def _model_call(self, inps, *args, **kwargs):
            return text_logits(self.model, super()._model_call(inps, *args, **kwargs), inps)

        def generate_until(self, requests, disable_tqdm=False):
            # Padding on the left would stand between what is read before a text and the text.
            together, self.batch_size_per_gpu = self.batch_size_per_gpu, 1
            try:
                return super().generate_until(requests, disable_tqdm=disable_tqdm)
            finally:
                self.batch_size_per_gpu = together

    return Behind


def _masked(base: type) -> type:
    """``HFLM`` that tells the model where padding starts and the steering where prompts end."""

    class Masked(base):
        steering: Any = None

        def _loglikelihood_tokens(self, requests, *args, **kwargs):
            self.waiting = Waiting(requests, self.max_length)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def _model_call(self, inps, attn_mask=None, labels=None):
            import torch

            lengths, prompts = self.waiting.lengths(inps.tolist())
            places = torch.arange(inps.shape[1], device=inps.device)
            ends = torch.tensor(lengths, dtype=torch.int64, device=inps.device).unsqueeze(1)
            mask = (places < ends).long()
            if self.steering is not None:
                self.steering.set(prompt_length=prompts)
            try:
                with torch.no_grad():
                    scores = self.model(inps, attention_mask=mask).logits
                return text_logits(self.model, scores, inps)
            finally:
                if self.steering is not None:
                    self.steering.set(prompt_length=None)

    return Masked


class Waiting:
    """The sequences that the harness has still to run, and where their prompts end."""

    def __init__(self, requests: Sequence[tuple], longest: int):
        self.rows: dict[tuple[int, ...], list[int]] = {}
        for _, context, continuation in requests:
            read = tuple((list(context) + list(continuation))[-(longest + 1) :][:-1])
            prompt = len(read) - (len(continuation) - 1)
            self.rows.setdefault(read, []).append(prompt)
        for read, prompts in self.rows.items():
            if len(set(prompts)) > 1:
                raise ValueError(
                    f"tasks: {len(prompts)} requests read the same {len(read)} tokens and end "
                    "their prompts at different ones, which cannot be told apart; steer with "
                    'positions="all"'
                )

    def lengths(self, batch: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Of each row padded with 0 on the right: its own length and its prompt's.

        The harness runs the longest sequences first and each exactly once, so a row that could
        be two of them is the longer one as long as that is waiting.
        """
        found = []
        for row in batch:
            end = len(row)
            while not self.rows.get(tuple(row[:end])):
                if end == 0 or row[end - 1] != 0:
                    raise RuntimeError("lm-eval ran a sequence that no request asked for")
                end -= 1
            found.append((end, self.rows[tuple(row[:end])].pop()))
        return [length for length, _ in found], [prompt for _, prompt in found]
