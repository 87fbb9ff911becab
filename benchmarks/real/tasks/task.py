"""What a task of the study is: rows for fitting, for validation and for the test, all apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.tasks import MultipleChoice

T = TypeVar("T")
COUNTS = {"fitting": 120, "validation": 60, "test": 400}
SHARES = {"fitting": 0.35, "validation": 0.25, "test": 0.4}
SHOTS = 4  # rows of the fitting set in a prompt of examples


class Row(NamedTuple):
    """A prompt with the continuation that is wanted and the one that is not.

    They are appended as they are, so that most begin with a space.
    """

    prompt: str
    positive: str
    negative: str


Pool = Callable[[str], Sequence[Row]]


@dataclass(frozen=True)
class RealTask:
    """A task by its name, what is wanted in words, and all the rows of a part.

    ``pool(part)`` gives those of ``"fitting"``, ``"validation"`` or ``"test"``, none of which is
    in another part.
    """

    name: str
    wanted: str
    pool: Pool

    def rows(self, part: str, seed: int = 0) -> list[Row]:
        """As many as `COUNTS` says, drawn by the seed; of the same part for every seed."""
        pool = list(dict.fromkeys(self.pool(part)))
        if len(pool) < COUNTS[part]:
            raise ValueError(
                f"task {self.name}: {part} needs {COUNTS[part]} different rows, came {len(pool)}; "
                "lengthen its lists"
            )
        return random.Random(f"{self.name} {part} {seed}").sample(pool, COUNTS[part])

    def contrast(self, seed: int) -> ContrastSet:
        """The fitting set of a seed: two texts of every row."""
        return ContrastSet.from_pairs(self.rows("fitting", seed))

    def items(self) -> MultipleChoice:
        """Validation and test, the wanted continuation as the answer among two."""
        named = [(part, row) for part in ("validation", "test") for row in self.rows(part)]
        return MultipleChoice.from_rows([_item(part, row) for part, row in named], joiner="")

    def shots(self, seed: int) -> str:
        """A prompt of examples: rows of the fitting set with what is wanted, one a line."""
        rows = self.rows("fitting", seed)[:SHOTS]
        return "".join(f"{row.prompt}{row.positive}\n" for row in rows)


def parted(name: str, entries: Sequence[T]) -> dict[str, list[T]]:
    """Entries cut into three parts by `SHARES`, in an order that the name alone decides."""
    order = list(dict.fromkeys(entries))
    random.Random(f"parts of {name}").shuffle(order)
    first = round(SHARES["fitting"] * len(order))
    last = len(order) - round(SHARES["test"] * len(order))
    return {"fitting": order[:first], "validation": order[first:last], "test": order[last:]}


def _item(part: str, row: Row) -> dict[str, Any]:
    return {
        "prompt": row.prompt,
        "choices": [row.positive, row.negative],
        "answer": 0,
        "split": part,
    }
