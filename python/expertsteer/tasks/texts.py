"""Tasks of running text: what a model writes, and how well it predicts what is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.encoding import behind_prompt, encode
from ..models.generation import generate_texts
from ..models.scoring import behind, log_probabilities
from ..support.numbers import fixed
from ..support.reading import short
from ..support.tensors import integers
from .rows import Item, TaskError, Unusable, answer, items_of_rows, side, text
from .scorers import exact_match, named_scorer
from .task import Answers, Task, TaskOnModel


@dataclass(frozen=True)
class Generation(Task):
    """Text that the model writes; rows ``{"prompt", "answer"}``.

    ``"answer"`` is a text or a list of texts that are all right. Decoding is greedy.

    Attributes:
        scoring: ``"exact"``: 1 where the text equals an answer, both normalised: Unicode
            compatibility form, lower case, white space collapsed, and without the punctuation
            ``.,;:!?`` at the end; ``"contains"``: 1 where an answer, normalised, stands in the
            text as whole words; a function ``(text, answer as in the row) -> number``, larger
            is better; or such a function's name, ``"package.module:function"``.
        max_new_tokens: written at most.
        stop: texts before the first of which the answer ends.
    """

    scoring: str | Callable[[str, Any], float] = "exact"
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    _scorer: Callable[[str, Any], float] = field(init=False, repr=False, default=exact_match)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scorer", named_scorer(self.scoring))
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise TaskError(f"max_new_tokens must be at least 1, came {self.max_new_tokens!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise TaskError(f"stop must be texts that are not empty, came {self.stop!r}")
        object.__setattr__(self, "stop", stop)

    @property
    def score_name(self) -> str:
        if isinstance(self.scoring, str):
            return {"exact": "exact match", "contains": "answer contained"}.get(
                self.scoring, self.scoring
            )
        return getattr(self.scoring, "__name__", "score")

    @staticmethod
    def _item(where: str, row: Mapping[str, Any]) -> Item:
        prompt, given = text(row, "prompt", "question"), answer(row)
        accepted = given if isinstance(given, list) else [given]
        if not accepted or not all(isinstance(a, str) and a.strip() for a in accepted):
            raise Unusable(f"'answer' must be a text or a list of texts, came {short(given)}")
        return Item(where, prompt, given, " | ".join(accepted), side=side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        return encode(tokenizer, [behind_prompt(tokenizer, prompt, i.prompt) for i in items])

    def length(self, encoded: Any) -> int:
        return len(encoded) + self.max_new_tokens - 1

    def why_not(self, tokenizer: Any, item: Item, encoded: Any) -> str | None:
        return None if len(encoded) else "the prompt has no tokens; rewrite it"

    def measure(self, on: TaskOnModel, items: Sequence[Item], encoded: Sequence[Any]) -> Answers:
        texts = generate_texts(
            on.model,
            on.tokenizer,
            encoded,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            batch_size=on.batch_size,
            bar=on.bar("generating"),
        )
        scores = [self._checked(t, item) for t, item in zip(texts, items)]
        return Answers(torch.tensor(scores, dtype=torch.float64, device="cpu").unsqueeze(1), texts)

    def _checked(self, written: str, item: Item) -> float:
        value = self._scorer(written, item.answer)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TaskError(
                f"scoring must return a finite number, came {short(value)} for {self.source}, "
                f"{item.where}"
            )
        return number


@dataclass(frozen=True)
class Perplexity(Task):
    """How well the model predicts text; rows ``{"text"}``.

    The score of a text is minus its summed loss in nats over the mean number of predicted tokens
    of all texts. The mean of the scores is then exactly minus the loss per token, every token
    weighing the same, and ``exp`` of its negative is the perplexity. First tokens are not counted.

    Attributes:
        long: ``"cut"`` texts at the end of the context, or ``"exclude"`` them; both are counted.
    """

    long: str = "cut"
    score_name: ClassVar[str] = "minus nats per token"

    def __post_init__(self) -> None:
        if self.long not in ("cut", "exclude"):
            raise TaskError(f"long must be 'cut' or 'exclude', came {self.long!r}")

    @classmethod
    def from_texts(cls, texts: Sequence[str], source: str = "texts", **options: Any) -> Perplexity:
        """The same from texts at hand."""
        if isinstance(texts, str):
            raise TaskError("texts must be a list of texts, came a single string")
        rows = ((f"text {i}", {"text": t}) for i, t in enumerate(texts))
        return cls(items_of_rows(source, rows, cls._item), source, **options)

    @staticmethod
    def _item(where: str, row: Mapping[str, Any]) -> Item:
        return Item(where, text(row, "text", "prompt"), side=side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        texts = [item.prompt for item in items]
        rows = encode(tokenizer, texts)
        if not prompt or min(map(len, rows), default=0) < 2:
            return [(ids, 1) for ids in rows]
        return behind(tokenizer, rows, texts, prompt)

    def length(self, encoded: Any) -> int:
        return len(encoded[0]) - 1

    def why_not(self, tokenizer: Any, item: Item, encoded: Any) -> str | None:
        return None if len(encoded[0]) > 1 else "a loss needs at least 2 tokens; drop the text"

    def measure(self, on: TaskOnModel, items: Sequence[Item], encoded: Sequence[Any]) -> Answers:
        total = log_probabilities(on.model, encoded, on.batch_size, on.bar("reading"))
        tokens = integers(len(ids) - start for ids, start in encoded).double()
        shown = [f"{fixed(-value, 3)} nats per token" for value in (total / tokens).tolist()]
        scores: Tensor = total / tokens.mean()
        return Answers(scores.unsqueeze(1), shown)
