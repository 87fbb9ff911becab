"""Texts as token ids: the one place where the package calls a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer for text: what was given, or the one inside a processor of several modalities.

    Raises:
        ValueError: no tokenizer, with the way to one.
    """
    own = hasattr(tokenizer, "convert_tokens_to_ids")  # some tokenizers hold another one
    found = tokenizer if own else getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(found) or isinstance(found, type):
        raise ValueError(
            "tokenizer must be a tokenizer of transformers, or a processor that holds one, came "
            f"{found.__name__ if isinstance(found, type) else type(found).__name__}; "
            f"{_way_to_one(found)}"
        )
    return found


def _way_to_one(came: Any) -> str:
    if type(came).__module__.partition(".")[0] == "tokenizers":
        return "wrap it: transformers.PreTrainedTokenizerFast(tokenizer_object=...)"
    return "load one with transformers.AutoTokenizer.from_pretrained, of the model's own name"


def encode(
    tokenizer: Any, texts: Sequence[str], *, special: bool = True, max_length: int | None = None
) -> list[list[int]]:
    """Token ids of each text, unpadded.

    A text may have been rendered already, by a chat template that writes the special tokens as
    text. What the tokenizer puts before every text, or behind, is not put there a second time.

    Args:
        special: add the tokenizer's special tokens.
        max_length: tokens kept of each text, special ones among them, on the tokenizer's
            truncation side; ``None`` keeps all.
    """
    tokenizer = text_tokenizer(tokenizer)
    if not len(texts):
        return []
    rows = _called(tokenizer, list(texts), special)
    added = _added(tokenizer, texts) if special else Added()
    side = getattr(tokenizer, "truncation_side", "right")
    return [added.once(row, max_length, side) for row in rows]


class Added(NamedTuple):
    """What a tokenizer puts before every text and behind it: token ids, mostly one or none."""

    before: list[int] = []
    behind: list[int] = []

    def once(self, row: list[int], max_length: int | None, side: str) -> list[int]:
        """A row of token ids without what the text had at its ends already, and cut."""
        before, behind = self
        end = len(row) - len(behind)
        if row[: len(before)] != before or row[end:] != behind or end < len(before):
            before, behind, end = [], [], len(row)  # this text went without
        body = row[len(before) : end]
        body = body[_overlap(before, body) :]
        body = body[: len(body) - _overlap(body, behind)]
        if max_length is not None:
            room = max(0, max_length - len(before) - len(behind))
            body = body[:room] if side == "right" else body[max(0, len(body) - room) :]
        return [*before, *body, *behind][:max_length]


def behind_prompt(tokenizer: Any, prompt: str, text: str) -> str:
    """A text with a prompt before it, but behind the beginning of sequence the text opens with."""
    # Not the attribute bos_token: tokenizers that have none complain in their log when asked.
    start = getattr(text_tokenizer(tokenizer), "special_tokens_map", {}).get("bos_token")
    if not prompt or not start or not text.startswith(start):
        return prompt + text
    return start + prompt + text[len(start) :]


def _overlap(left: list[int], right: list[int]) -> int:
    """The most token ids that ``left`` ends with and ``right`` begins with."""
    most = min(len(left), len(right))
    return next((n for n in range(most, 0, -1) if left[-n:] == right[:n]), 0)


def _added(tokenizer: Any, texts: Sequence[str]) -> Added:
    """What the tokenizer adds, told by a text that has no special token of its own."""
    for text in ("a", *texts[:1]):
        (bare,), (whole,) = _called(tokenizer, [text], False), _called(tokenizer, [text], True)
        for start in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[start : start + len(bare)] == bare:
                return Added(whole[:start], whole[start + len(bare) :])
    return Added()


def _called(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    options = {"padding": False, "truncation": False, "add_special_tokens": special}
    return [list(row) for row in tokenizer(texts, **options)["input_ids"]]
