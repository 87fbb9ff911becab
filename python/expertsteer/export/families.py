"""Which model families can be exported as a stock checkpoint: ``python -m
expertsteer.export.families`` prints the table of the documentation."""

from __future__ import annotations

from ..folding.families import FOLDABLE, REFUSED
from ..folding.permanent import CHECKPOINTS


def families_table() -> str:
    """Markdown: every family by its ``model_type``, how it is written, or why it is not."""
    rows = ["| `model_type` | stock checkpoint |", "|---|---|"]
    rows += [f"| `{name}` | {how} |" for name, how in CHECKPOINTS.items()]
    folded_only = ", ".join(f"`{name}`" for name in sorted(set(FOLDABLE) - set(CHECKPOINTS)))
    refused = ", ".join(f"`{name}` ({why})" for name, why in sorted(REFUSED.items()))
    return "\n".join(
        [
            *rows,
            "",
            f"No stock form has the bias, only a live model: {folded_only}.",
            "",
            f"A constant vector is no bias there, steer with slots: {refused}.",
        ]
    )


if __name__ == "__main__":
    print(families_table())
