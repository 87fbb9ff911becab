"""What a model has read where it stands, as text, and where another model has read as much.

Two tokenizers cut a text differently, so places are matched by the text before them: the state of
the other model is that at the last token of *its* tokens of the same text. Nothing that comes later
is in them, and what is fitted is what a model that reads along will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models.encoding import encode, text_tokenizer

_HALF = "\ufffd"  # what bytes of a character that is not complete yet decode to


@dataclass(frozen=True)
class Written:
    """A prompt and its answer as a model that answers has them.

    Attributes:
        ids: token ids of the prompt and, behind them, of the answer.
        start: the prompt's last token; from there on every token is a place.
        texts: what has been read at each place.
    """

    ids: list[int]
    start: int
    texts: list[str]

    @property
    def places(self) -> range:
        return range(self.start, len(self.ids))


def written(tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[Written]:
    """Every answer behind its prompt, whose own tokens stay what they are.

    Raises:
        ValueError: a prompt without tokens, an answer that adds none, or one whose tokens behind
            the prompt's do not spell it.
    """
    whole = encode(tokenizer, [p + a for p, a in zip(prompts, answers)])
    own = encode(tokenizer, prompts)
    found = []
    for prompt, answer, ids, before in zip(prompts, answers, whole, own):
        if not before:
            raise ValueError(f"examples: the prompt {prompt!r} has no tokens")
        if ids[: len(before)] != before:  # the answer's beginning joined the prompt's last token
            ids = [*before, *_behind(tokenizer, answer)]
        read = texts_of(tokenizer, [ids[: i + 1] for i in range(len(before) - 1, len(ids))])
        if len(read) < 2 or not read[-1].endswith(answer.strip()):
            raise ValueError(
                f"examples: behind the prompt {prompt!r} the answer {answer!r} comes out as "
                f"{read[-1][len(read[0]) :]!r} in the target's tokens; give an answer that begins "
                "where the prompt ends, with its space in the one or the other"
            )
        found.append(Written(list(ids), len(before) - 1, read))
    return found


def _behind(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of a text that stands behind another one: no space is put before it."""
    ahead, both = encode(tokenizer, ["\n", "\n" + answer], special=False)
    if both[: len(ahead)] == ahead:
        return both[len(ahead) :]
    return encode(tokenizer, [answer], special=False)[0]


def texts_of(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row of token ids, without special tokens and incomplete characters."""
    tokenizer = text_tokenizer(tokenizer)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [tokenizer.decode(list(row), **options).rstrip(_HALF) for row in rows]


@dataclass(frozen=True)
class Shared:
    """Rows of token ids, and at which token of which row each text has just been read.

    Attributes:
        rows: token ids; none is the beginning of another one.
        tokens: per row the token indices that are wanted, increasing.
        order: for each text its place among the wanted tokens of all rows in turn.
    """

    rows: list[list[int]]
    tokens: list[list[int]]
    order: list[int]


def read_together(tokenizer: Any, texts: Sequence[str]) -> Shared:
    """Where a model reads each of the texts, in as few passes as their tokens allow.

    A text whose tokens begin those of a longer one is read on the way to that.

    Raises:
        ValueError: a text without tokens.
    """
    encoded = encode(tokenizer, texts)
    empty = next((text for text, ids in zip(texts, encoded) if not ids), None)
    if empty is not None:
        raise ValueError(f"texts: {empty!r} has no tokens under this tokenizer")
    # Sorted as sequences, what begins with a row stands right behind it.
    by_ids = sorted(range(len(texts)), key=lambda i: encoded[i])
    rows: list[list[int]] = []
    wanted: list[set[int]] = []
    where: dict[int, tuple[int, int]] = {}
    for i in reversed(by_ids):
        ids = encoded[i]
        if not rows or rows[-1][: len(ids)] != ids:
            rows.append(ids)
            wanted.append(set())
        wanted[-1].add(len(ids) - 1)
        where[i] = len(rows) - 1, len(ids) - 1
    tokens = [sorted(some) for some in wanted]
    places = {(row, t): None for row, some in enumerate(tokens) for t in some}
    numbers = {place: number for number, place in enumerate(places)}
    return Shared(rows, tokens, [numbers[where[i]] for i in range(len(texts))])
