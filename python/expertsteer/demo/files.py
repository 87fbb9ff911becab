"""The demo's models and texts as files, so that every command can be tried on them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..support.paths import local_path
from ..support.writing import appearing, made_folder, write_text
from . import CHECKPOINTS, checkpoint, world

FILES = ("contrast.jsonl", "plain.txt", "questions.jsonl")


def write_files(folder: str | os.PathLike, *, examples: int = 400, seed: int = 0) -> Path:
    """Write both checkpoints, a contrast set, neutral texts and questions.

    ``expert/`` and ``target/`` are model folders; ``contrast.jsonl`` holds rows of text, label and
    pair; ``plain.txt`` 40 neutral texts, one a line; ``questions.jsonl`` rows of question, choices,
    the specialist's answer, and the split (200, 80 of them for validation).

    Args:
        folder: made if absent.
        examples, seed: of the contrast set.

    Raises:
        ValueError: one of the names is taken there.
    """
    folder = local_path(folder, "folder")
    taken = [name for name in (*CHECKPOINTS, *FILES) if (folder / name).exists()]
    if taken:
        raise ValueError(
            f"folder {str(folder)!r} already holds {', '.join(taken)}; give an empty one"
        )
    made_folder(folder)
    for name in CHECKPOINTS:
        with appearing(folder / name) as copied:
            shutil.copytree(checkpoint(name), copied, dirs_exist_ok=True)
    texts, labels, pairs = world.contrast_texts(examples, seed)
    rows = ({"text": t, "label": i, "pair": p} for t, i, p in zip(texts, labels, pairs))
    _write_rows(folder / "contrast.jsonl", rows)
    plain = "\n".join(world.plain_texts(40, seed=3)) + "\n"
    write_text(folder / "plain.txt", plain)
    _write_rows(folder / "questions.jsonl", question_rows())
    return folder


def question_rows() -> Iterable[dict[str, Any]]:
    """Rows of a multiple-choice task; the answer is the specialist's."""
    for split in world.SPLITS:
        for question in world.questions(split):
            answer = question.answers[world.SPECIALIST]
            yield {
                "question": question.prompt,
                "choices": list(question.choices),
                "answer": answer,
                "split": split,
            }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
