"""From a contrast set to token ids, padding and the tokens whose states are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contrast.examples import Example
from ..models.encoding import encode
from ..support.reading import short
from ..support.telling import tell


def token_ids(
    tokenizer: Any, contrast: Sequence[Example], max_length: int | None = None, first: int = 0
) -> tuple[list[list[int]], int]:
    """Token ids of every example, unpadded, special tokens included, and how many were cut.

    Chat messages go through the tokenizer's chat template; when the last message is not the
    assistant's, the template's opening of the assistant's turn follows it.

    Args:
        max_length: cut longer examples to so many tokens, on the tokenizer's truncation side;
            ``None`` never cuts.
        first: the number of the first example, for errors.

    Raises:
        ValueError: an example without tokens, messages without a usable chat template.
    """
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(f"max_length must be a positive integer or None, came {max_length!r}")
    rows: list[list[int]] = [[] for _ in contrast]
    cut = 0
    for chat in (False, True):
        chosen = [i for i, example in enumerate(contrast) if isinstance(example.text, str) != chat]
        texts = [contrast[i].text for i in chosen]
        if chat:
            texts = [_rendered(tokenizer, first + i, contrast[i]) for i in chosen]
        # A template writes its special tokens itself.
        for i, row in zip(chosen, encode(tokenizer, texts, special=not chat)):
            rows[i] = row
        if max_length is not None:
            long = [j for j, i in enumerate(chosen) if len(rows[i]) > max_length]
            shorter = [texts[j] for j in long]
            kept = encode(tokenizer, shorter, special=not chat, max_length=max_length)
            for j, row in zip(long, kept):
                rows[chosen[j]] = row
            cut += len(long)
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(
            f"contrast: example {first + empty[0]} has no tokens under this tokenizer (and "
            f"{len(empty)} in all): {short(contrast[empty[0]].text)}; drop or rewrite it"
        )
    return rows, cut


def warn_of_cut(cut: int, examples: int, max_length: int | None) -> None:
    """Say how many examples were cut, if any."""
    if cut:
        tell(f"max_length={max_length} cut {cut} of {examples} examples; the rest is not seen")


def _rendered(tokenizer: Any, index: int, example: Example) -> str:
    """Chat messages as the text that the tokenizer's template makes of them."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"contrast: example {index} holds chat messages, but the tokenizer has no chat "
            "template; set tokenizer.chat_template, or give plain text"
        )
    messages = [dict(message) for message in example.text]
    try:
        # As text, since what tokenize=True returns differs between releases of transformers.
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )
    except Exception as error:  # templates raise whatever they like, jinja2's errors included
        raise ValueError(
            f"contrast: the tokenizer's chat template refuses example {index}: {error}; "
            "its roles and their order must be those the template allows"
        ) from error


def require_fitting(
    rows: Sequence[Sequence[int]], vocabulary: int | None, positions: int | None, first: int = 0
) -> None:
    """Raise ``ValueError`` for token ids or lengths that the model has no embedding for.

    Args:
        vocabulary: rows of the model's token embedding, ``None`` where unknown.
        positions: the longest sequence the model's configuration allows, ``None`` for any.
        first: the number of the first example, for errors.
    """
    for i, row in enumerate(rows, first):
        if vocabulary is not None and max(row) >= vocabulary:
            raise ValueError(
                f"tokenizer gives token id {max(row)} for example {i}, the model embeds "
                f"{vocabulary} tokens; pass the tokenizer that belongs to this model"
            )
        if positions is not None and len(row) > positions:
            raise ValueError(
                f"contrast: example {i} has {len(row)} tokens, the model's configuration allows "
                f"{positions} (max_position_embeddings, less any soft prompt); shorten it, or pass "
                f"max_length={positions} to cut such examples"
            )


def kept_tokens(lengths: Sequence[int], position: str | int, first: int = 0) -> list[int] | None:
    """The index of the token to keep per example, ``None`` for the mean over all of them.

    Raises:
        ValueError: another position than ``"last"``, ``"mean"`` or an integer, or an index that
            an example is too short for.
    """
    require_position(position)
    if position == "mean":
        return None
    index = -1 if position == "last" else position
    for i, length in enumerate(lengths, first):
        if not -length <= index < length:
            raise ValueError(
                f"position {index} is out of range for example {i}, which has {length} tokens "
                f"({-length}..{length - 1}); choose another position or drop the example"
            )
    return [index if index >= 0 else length + index for length in lengths]


def require_position(position: str | int) -> None:
    named = position in ("last", "mean")
    if not named and (not isinstance(position, int) or isinstance(position, bool)):
        raise ValueError(f"position must be 'last', 'mean' or an integer, came {position!r}")
