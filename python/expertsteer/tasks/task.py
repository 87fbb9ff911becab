"""What every task has in common: where its items come from, and how it meets a model.

There it is split, and checked against the model's tokenizer and context.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..models.encoding import text_tokenizer
from ..models.forward import longest
from .rows import Item, TaskError, items_of_file, items_of_rows, split_items


class Answers(NamedTuple):
    """Of every item: scores ``[N, 1 or 2]`` float64, and what the model answered, as text."""

    scores: Tensor
    texts: list[str]


class Reply(NamedTuple):
    """One item and what the model, as it is now, made of it."""

    prompt: str
    expected: str | None
    text: str
    score: float


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


class TaskOnModel:
    """A task's items for one model. Made by `Task.on`.

    Attributes:
        items: by split; excluded: what was left out or cut, by reason, with the number.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        tokenizer: Any,
        validation: float,
        seed: int,
        batch_size: int,
        max_length: int | None,
        progress: bool,
    ):
        if type(batch_size) is not int or batch_size < 1:
            raise TaskError(f"batch_size must be a whole number of at least 1, came {batch_size!r}")
        tokenizer = text_tokenizer(tokenizer)
        self.task, self.model, self.tokenizer = task, model, tokenizer
        self.batch_size, self.progress = batch_size, progress
        self.limit = _limit(model, max_length)
        self.excluded: dict[str, int] = {}
        self._encoded: dict[tuple[str, str], list[Any]] = {}
        self.items = split_items(task.source, task.items, validation, seed)
        encoded = {name: task.encoded(tokenizer, part) for name, part in self.items.items()}
        self._require_usable(encoded)
        for name in self.items:
            self._fit(name, encoded[name])

    def score(self, split: str, prompt: str = "") -> Tensor:
        """Scores of the model as it is now, ``[N, 1 or 2]``; see the task. As `compare` wants it.

        Args:
            split: ``"validation"`` or ``"test"``; prompt: text put before every item.

        Raises:
            TaskError: an unknown split, items that do not fit the context behind the prompt.
        """
        return self.measure(split, prompt).scores

    def measure(self, split: str, prompt: str = "") -> Answers:
        """Scores and answers of the model as it is now."""
        if split not in self.items:
            raise TaskError(f"split must be one of {tuple(self.items)}, came {split!r}")
        if (split, prompt) not in self._encoded:
            self._encoded[split, prompt] = self._behind(split, prompt)
        return self.task.measure(self, self.items[split], self._encoded[split, prompt])

    def examples(self, split: str = "test", prompt: str = "") -> list[Reply]:
        """Every item of a split with what the model, as it is now, answers."""
        scores, texts = self.measure(split, prompt)
        rows = zip(self.items[split], texts, scores[:, 0].tolist())
        return [Reply(item.prompt, item.expected, told, value) for item, told, value in rows]

    @property
    def title(self) -> str:
        """The score's name, and on how many items of what."""
        return f"{self.task.score_name} on {len(self.items['test'])} items of {self.task.source}"

    def bar(self, description: str) -> str | None:
        """What ``progress`` shows; ``None`` where bars are off."""
        return description if self.progress else None

    def _require_usable(self, encoded: dict[str, list[Any]]) -> None:
        problems = []
        for name, items in self.items.items():
            for item, one in zip(items, encoded[name]):
                reason = self.task.why_not(self.tokenizer, item, one)
                if reason is not None:
                    problems.append((item.where, reason))
        if problems:
            order = {item.where: i for i, item in enumerate(self.task.items)}
            problems.sort(key=lambda problem: order[problem[0]])
            count = len(self.task.items)
            message = f"{self.task.source}: {len(problems)} of {count} rows cannot be scored"
            raise TaskError(message, problems)

    def _fit(self, name: str, encoded: list[Any]) -> None:
        """Leave out, or cut, what is longer than the model's context."""
        long = [self.limit is not None and self.task.length(one) > self.limit for one in encoded]
        if any(long) and getattr(self.task, "long", "exclude") == "cut":
            self.excluded[f"{name} texts cut to the context of {self.limit} tokens"] = sum(long)
            encoded = [self._cut(one) if cut else one for one, cut in zip(encoded, long)]
        elif any(long):
            self.excluded[f"{name} items longer than the context of {self.limit} tokens"] = sum(
                long
            )
            encoded = [one for one, out in zip(encoded, long) if not out]
            self.items[name] = [item for item, out in zip(self.items[name], long) if not out]
            if len(encoded) < 2:
                raise TaskError(
                    f"{self.task.source}: {sum(long)} of {len(long)} {name} items are longer than "
                    f"the context of {self.limit} tokens, and at least 2 must fit; shorten them"
                )
        self._encoded[name, ""] = encoded

    def _cut(self, one: Any) -> Any:
        ids, start = one
        return ids[: self.limit + 1], start

    def _behind(self, split: str, prompt: str) -> list[Any]:
        encoded = self.task.encoded(self.tokenizer, self.items[split], prompt)
        lengths = [self.task.length(one) for one in encoded]
        if self.limit is not None and max(lengths) > self.limit:
            count = sum(length > self.limit for length in lengths)
            raise TaskError(
                f"prompts: with {prompt!r} {count} {split} items are longer than the context of "
                f"{self.limit} tokens; shorten the prompt, or drop those items"
            )
        return encoded


def _limit(model: nn.Module, max_length: int | None) -> int | None:
    if max_length is not None and (type(max_length) is not int or max_length < 2):
        raise TaskError(f"max_length must be a whole number of at least 2, came {max_length!r}")
    known: Sequence[int] = [n for n in (max_length, longest(model)) if n is not None]
    return min(known, default=None)
