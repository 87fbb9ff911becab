"""Tasks that are answered by a probability: of given choices, or of one next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..models.encoding import behind_prompt, encode
from ..models.scoring import choice_sequences, log_probabilities, scorable
from ..support.numbers import fixed
from ..support.reading import short
from ..support.tensors import integers
from .rows import Item, Unusable, answer, side, text
from .task import Answers, Task, TaskOnModel


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
        prompt, choices = text(row, "question", "prompt"), _choices(row)
        right = _right(answer(row), choices)
        return Item(where, prompt, choices[right], choices[right], tuple(choices), right, side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        prompts = [behind_prompt(tokenizer, prompt, item.prompt) for item in items]
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
            total = total / integers(len(ids) - start for ids, start in flat)
        scores, answers = torch.zeros(len(items), 2, dtype=torch.float64, device="cpu"), []
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
            choices = _choices(row)
            given = choices[_right(given, choices)]
        if not isinstance(given, str) or not given.strip():
            raise Unusable(f"'answer' must be a text that is not blank, came {short(given)}")
        return Item(where, prompt, given, given, side=side(row))

    def encoded(self, tokenizer: Any, items: Sequence[Item], prompt: str = "") -> list[Any]:
        prompts = [behind_prompt(tokenizer, prompt, item.prompt) for item in items]
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
            f"{short(i.answer)} with probability {fixed(p, 3)}"
            for i, p in zip(items, probabilities)
        ]
        return Answers(probabilities.unsqueeze(1), shown)


def _joined(prompt: str, joiner: str) -> str:
    return "" if prompt[-1:].isspace() else joiner


def _choices(row: Mapping[str, Any]) -> list[str]:
    """The choices of a row: two or more texts, all different."""
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise Unusable(f"'choices' must be a list of two or more texts, came {short(choices)}")
    for i, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise Unusable(f"choices must be texts that are not blank, came {short(choice)}")
        if choice.strip() in [c.strip() for c in choices[:i]]:
            raise Unusable(f"choice {short(choice)} stands there twice; the answer is unclear")
    return choices


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
