"""States that a map of guidance is fitted on: of a target that knows, and of an expert that reads.

A target *knows* an answer that it has been shown: behind the shown text the prompt comes once more,
and the states at its end and along the answer are those of a model that is about to say it. The
expert has seen the prompt alone. A map from its states to those of knowing brings what it knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.encoding import encode
from ..states.reader import Reader
from .readings import Written, read_together

# What stands before the prompt: a template of {prompt} and {answer}, a function of both, nothing.
Showing = str | Callable[[str, str], str] | None
SHOWN = "{prompt}{answer}\n"


def states_of_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    layers: int | Iterable[int] | None = None,
    *,
    batch_size: int = 32,
    decoder_layers: str | None = None,
    on_batch: Callable[[int], Any] = lambda rows: None,
) -> Tensor:
    """States ``[L, N, d]`` at the last token of each text, float32 on the CPU.

    As `capture` reads them; texts that begin longer ones are read on the way.

    Args:
        layers: decoder layers counted from 0; by default all.
        on_batch: called with the number of rows after each pass.

    Raises:
        ValueError: a text without tokens, and what `capture` raises.
    """
    shared = read_together(tokenizer, texts)
    reader = _reader(model, tokenizer, layers, batch_size, decoder_layers)
    states = reader.states_at(shared.rows, shared.tokens, on_batch)
    return states[:, shared.order]


def states_of_knowing(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    answered: Sequence[Written],
    layers: int | Iterable[int] | None = None,
    *,
    showings: Sequence[Showing] = (SHOWN,),
    batch_size: int = 32,
    decoder_layers: str | None = None,
    on_batch: Callable[[int], Any] = lambda rows: None,
) -> Tensor:
    """The target's states ``[L, K, d]`` at every place of every answer, float32 on the CPU.

    Args:
        answered: the prompts with their answers, from `written` of the target's tokenizer.
        showings: ways to show the answer, whose states are averaged; ``None`` is none at all, and
            the states are the ordinary ones.

    Returns:
        The places of the first example, of the second, and so on.

    Raises:
        ValueError: no way to show, a template that leaves the answer out, what `capture` raises.
    """
    if not showings:
        raise ValueError("showings must name at least one way to show the answer, came none")
    reader = _reader(model, tokenizer, layers, batch_size, decoder_layers)
    total: Tensor | None = None
    for showing in showings:
        shown = [before_prompt(showing, p, a) for p, a in zip(prompts, answers)]
        begun = encode(tokenizer, [s + p for s, p in zip(shown, prompts)])
        rows, tokens = [], []
        for ids, one in zip(begun, answered):
            answer = one.ids[one.start + 1 :]
            rows.append([*ids, *answer])
            tokens.append(range(len(ids) - 1, len(ids) + len(answer)))
        states = reader.states_at(rows, tokens, on_batch)
        total = states if total is None else total + states
    return total / len(showings)


def before_prompt(showing: Showing, prompt: str, answer: str) -> str:
    """What a prompt comes behind, where the answer is shown.

    Raises:
        ValueError: the answer is not in it.
    """
    if showing is None:
        return ""
    if callable(showing):
        text = showing(prompt, answer)
    else:
        given = {"{prompt}": prompt, "{answer}": answer}  # in one go: prompts may have braces
        text = re.sub(r"\{prompt\}|\{answer\}", lambda found: given[found[0]], showing)
    if not isinstance(text, str) or answer.strip() not in text:
        raise ValueError(
            f"showings must show the answer: {showing!r} makes {text!r} of the prompt {prompt!r} "
            f"and the answer {answer!r}; write {{answer}} into the template, or pass None for "
            "ordinary states"
        )
    return text


def _reader(
    model: nn.Module,
    tokenizer: Any,
    layers: int | Iterable[int] | None,
    batch_size: int,
    decoder_layers: str | None,
) -> Reader:
    return Reader(model, tokenizer, layers, "last", batch_size, torch.float32, None, decoder_layers)
