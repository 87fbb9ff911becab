"""What every task has in common: where its items come from, and how it meets a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ._on_model import Answers, TaskOnModel
from ._task_rows import Item, items_of_file, items_of_rows


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
