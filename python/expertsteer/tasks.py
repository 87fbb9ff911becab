"""Tasks: what steering is supposed to improve, from a file of one's own.

A task knows its items and how they are scored. `Task.on` makes it ready for one model: the items
are split, those that the model cannot read are left out and counted, and what comes back offers
``score(split, prompt)`` as `compare` wants it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._generation import exact_match, generate_texts, named_scorer
from ._on_model import Answers, TaskOnModel
from ._task_rows import (
    Item,
    TaskError,
    Unusable,
    answer,
    items_of_file,
    items_of_rows,
    short,
    side,
    text,
)
from .scoring import behind, choice_sequences, encode, log_probabilities, scorable

__all__ = [
    "TASKS",
    "Generation",
    "MultipleChoice",
    "NextToken",
    "Perplexity",
    "Task",
    "TaskError",
    "TaskOnModel",
    "load_task",
]


@dataclass(frozen=True)
class Task:
    """Items and how they are scored; made by ``from_jsonl`` or ``from_rows`` of the tasks below.

    Attributes:
        items: the checked rows; source: the file they came from.
    """

    items: tuple[Item, ...]
    source: str = "rows"
    score_name: ClassVar[str]

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike, **options: Any) -> Task:
        """Read a UTF-8 file of one JSON object a line.

        Raises:
            TaskError: no such file, an empty one, or rows that cannot be used, all of them with
                their line and the reason.
        """
        return cls(items_of_file(path, cls._item), str(path), **options)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **options: Any) -> Task:
        """The same from rows at hand, which are named by their index from 0."""
        named = ((f"row {i}", row) for i, row in enumerate(rows))
        return cls(items_of_rows("rows", named, cls._item), **options)

    def on(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        validation: float = 0.4,
        seed: int = 0,
        batch_size: int = 32,
        max_length: int | None = None,
        progress: bool = True,
    ) -> TaskOnModel:
        """Split the items and make them ready for one model.

        Args:
            validation: share of the items that settings are chosen on, unless the rows name their
                ``"split"`` themselves; equal prompts are never on both sides.
            seed: of that split.
            batch_size: sequences per forward pass.
            max_length: tokens an item may have, by default the model's context.

        Raises:
            TaskError: a side of the split without two items, items that the tokenizer leaves
                nothing of, by file and line.
        """
        return TaskOnModel(
            self, model, tokenizer, validation, seed, batch_size, max_length, progress
        )

    @staticmethod
    def _item(where: str, row: Mapping[str, Any]) -> Item:
        raise NotImplementedError

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        """What the model reads of each item behind a prompt, in the task's own form."""
        raise NotImplementedError

    def length(self, encoded: Any) -> int:
        """Tokens that the model has to have room for."""
        raise NotImplementedError

    def why_not(self, tokenizer: Any, item: Item, encoded: Any) -> str | None:
        """Why an item cannot be scored with this tokenizer; ``None`` where it can."""
        return None

    def measure(self, on: TaskOnModel, items: Sequence[Item], encoded: Sequence[Any]) -> Answers:
        raise NotImplementedError


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Choose among given continuations; rows ``{"question", "choices", "answer"}``.

    ``"prompt"`` may stand for ``"question"``. ``"answer"`` is one of the choices, or the index of
    one from 0. The number of choices may differ from row to row.

    A choice is scored by the log-probability of its tokens behind the question. Column 0 of the
    score is 1 where the answer's is larger than every other's, else 0; column 1 is the answer's
    probability among the choices, the softmax over what was compared.

    Attributes:
        normalize: divide each log-probability by the number of tokens it is summed over: those of
            the choice, and those of the question that a tokenizer merges with any of them.
        joiner: put between question and choice, unless the question ends in white space.
    """

    normalize: bool = False
    joiner: str = " "
    score_name: ClassVar[str] = "accuracy"

    @staticmethod
    def _item(where: str, row: Mapping[str, Any]) -> Item:
        prompt, choices = text(row, "question", "prompt"), row.get("choices")
        if not isinstance(choices, list) or len(choices) < 2:
            raise Unusable(f"'choices' must be a list of two or more texts, came {short(choices)}")
        for i, choice in enumerate(choices):
            if not isinstance(choice, str) or not choice.strip():
                raise Unusable(f"choices must be texts that are not blank, came {short(choice)}")
            if choice.strip() in [c.strip() for c in choices[:i]]:
                raise Unusable(f"choice {short(choice)} stands there twice; the answer is unclear")
        right = _right(answer(row), choices)
        return Item(where, prompt, choices[right], choices[right], tuple(choices), right, side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        prompts = [prompt + item.prompt for item in items]
        table = [[_joined(item.prompt, self.joiner) + c for c in item.choices] for item in items]
        return list(choice_sequences(tokenizer, prompts, table))

    def length(self, encoded: Any) -> int:
        return max(len(ids) for ids, _ in encoded) - 1  # the last token is predicted, not read

    def why_not(self, tokenizer: Any, item: Item, encoded: Any) -> str | None:
        if not scorable(encoded):
            none = [c for c, (ids, start) in zip(item.choices, encoded) if len(ids) <= start]
            what = f"choice {short(none[0])}" if none else "the question"
            return (
                f"{what} has no tokens of its own; rewrite it, or use a tokenizer that adds a "
                "beginning-of-sequence token"
            )
        for i, (ids, _) in enumerate(encoded):
            for j in range(i):
                if encoded[j][0] == ids:
                    both = f"{short(item.choices[j])} and {short(item.choices[i])}"
                    return f"choices {both} are the same tokens to this tokenizer; rewrite one"
        return None

    def measure(self, on: TaskOnModel, items: Sequence[Item], encoded: Sequence[Any]) -> Answers:
        flat = [sequence for row in encoded for sequence in row]
        total = log_probabilities(on.model, flat, on.batch_size, on.bar("scoring choices"))
        if self.normalize:
            total = total / torch.tensor([len(ids) - start for ids, start in flat])
        scores, answers = torch.zeros(len(items), 2, dtype=torch.float64), []
        for i, (item, part) in enumerate(zip(items, total.split([len(row) for row in encoded]))):
            others = torch.cat([part[: item.right], part[item.right + 1 :]])
            scores[i, 0] = float(part[item.right] > others.max())
            scores[i, 1] = part.softmax(dim=0)[item.right]
            answers.append(item.choices[int(part.argmax())])
        return Answers(scores, answers)


@dataclass(frozen=True)
class NextToken(Task):
    """The probability of one next token; rows ``{"prompt", "answer"}``.

    The score is the probability, over the whole vocabulary, of the single token that the answer
    adds to the prompt. Answers of several tokens are refused.

    Attributes:
        joiner: put between prompt and answer, unless the prompt ends in white space.
    """

    joiner: str = " "
    score_name: ClassVar[str] = "probability of the answer's token"

    @staticmethod
    def _item(where: str, row: Mapping[str, Any]) -> Item:
        prompt, given = text(row, "prompt", "question"), answer(row)
        if isinstance(given, int) and not isinstance(given, bool) and row.get("choices"):
            given = row["choices"][_right(given, row["choices"])]
        if not isinstance(given, str) or not given.strip():
            raise Unusable(f"'answer' must be a text that is not blank, came {short(given)}")
        return Item(where, prompt, given, given, side=side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        prompts = [prompt + item.prompt for item in items]
        table = [[_joined(item.prompt, self.joiner) + item.answer] for item in items]
        return [row[0] for row in choice_sequences(tokenizer, prompts, table)]

    def length(self, encoded: Any) -> int:
        return len(encoded[0]) - 1

    def why_not(self, tokenizer: Any, item: Item, encoded: Any) -> str | None:
        ids, start = encoded
        if start < 1 or len(ids) <= start:
            return f"the prompt or the answer {short(item.answer)} has no tokens of its own"
        if len(ids) - start > 1 or start < len(encode(tokenizer, [item.prompt])[0]):
            return (
                f"answer {short(item.answer)} adds {len(ids) - start} tokens to the prompt, "
                "not a single one; shorten it, or use a multiple-choice task (task type choice)"
            )
        return None

    def measure(self, on: TaskOnModel, items: Sequence[Item], encoded: Sequence[Any]) -> Answers:
        total = log_probabilities(on.model, encoded, on.batch_size, on.bar("scoring tokens"))
        probabilities = total.exp()
        shown = [
            f"{short(i.answer)} with probability {p:.3f}" for i, p in zip(items, probabilities)
        ]
        return Answers(probabilities.unsqueeze(1), shown)


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
        return encode(tokenizer, [prompt + item.prompt for item in items])

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
        return Answers(torch.tensor(scores, dtype=torch.float64).unsqueeze(1), texts)

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
        tokens = torch.tensor([len(ids) - start for ids, start in encoded], dtype=torch.float64)
        shown = [f"{-value:.3f} nats per token" for value in (total / tokens).tolist()]
        scores: Tensor = total / tokens.mean()
        return Answers(scores.unsqueeze(1), shown)


TASKS = {
    "choice": MultipleChoice,
    "next-token": NextToken,
    "generation": Generation,
    "perplexity": Perplexity,
}


def load_task(path: str | os.PathLike, kind: str = "choice", **options: Any) -> Task:
    """A task of a kind by name: ``"choice"``, ``"next-token"``, ``"generation"``, ``"perplexity"``.

    A perplexity task may also be a text file (``.txt``) of one text a line.

    Raises:
        TaskError: an unknown kind, or what `Task.from_jsonl` raises.
    """
    if kind not in TASKS:
        raise TaskError(f"kind must be one of {tuple(TASKS)}, came {kind!r}")
    if kind == "perplexity" and str(path).endswith(".txt"):
        with open(path, encoding="utf-8") as stream:
            texts = [line.rstrip("\n") for line in stream if line.strip()]
        return Perplexity.from_texts(texts, str(path), **options)
    return TASKS[kind].from_jsonl(path, **options)


def _joined(prompt: str, joiner: str) -> str:
    return "" if prompt[-1:].isspace() else joiner


def _right(given: Any, choices: Sequence[str]) -> int:
    """Which choice the answer is: a text, or an index."""
    if isinstance(given, str):
        places = [i for i, choice in enumerate(choices) if choice.strip() == given.strip()]
        if not places:
            raise Unusable(f"answer {short(given)} is not among the choices {short(choices)}")
        return places[0]
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < len(choices):
        raise Unusable(
            f"'answer' must be one of the choices or an index from 0 to {len(choices) - 1}, came "
            f"{short(given)}"
        )
    return given
