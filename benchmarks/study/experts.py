"""The experts of the study: weaker, stronger, of another tokenizer, a copy of the target.

    python -m benchmarks.study.experts --cache FOLDER [--only NAME ...]

trains those that the folder does not hold yet, on one thread: one machine and one release of torch
give the same weights again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expertsteer import demo
from expertsteer.demo import train, world
from expertsteer.models.loading import load

LONGEST = 1024  # characters; the bundled models' 128 are words
EXPERT = train.RECIPES["expert"]


def weaker(progress: bool = True) -> tuple[Any, Any, list[float]]:
    """The bundled expert after the first 250 of its 1,000 steps."""
    return train.train(EXPERT, steps=250, progress=progress)


def stronger(progress: bool = True) -> tuple[Any, Any, list[float]]:
    """As wide and deep as the target, trained for longer than either bundled model."""
    recipe = train.Recipe(width=96, layers=4, specialist_share=0.8, steps=1600, seed=4)
    return train.train(recipe, progress=progress)


def tuned(progress: bool = True) -> tuple[Any, Any, list[float]]:
    """A copy of the target that has read on, mostly on the coast: same basis, same tokenizer."""
    model, tokenizer = demo.load("target")
    shape = train.RECIPES["target"]
    recipe = replace(shape, specialist_share=0.9, steps=200, seed=5, learning_rate=1e-3)
    return model, tokenizer, train.learn(model, tokenizer, recipe, progress=progress)


def early(progress: bool = True) -> tuple[Any, Any, list[float]]:
    """Another target: the bundled one after the first 400 of its 1,400 steps, when it has learned
    answers and hardly begun to tell the dialects apart."""
    return train.train(train.RECIPES["target"], steps=400, progress=progress)


def letters(progress: bool = True) -> tuple[Any, Any, list[float]]:
    """The bundled expert's shape and share, reading one letter at a time."""
    tokenizer = letter_tokenizer()
    recipe = replace(EXPERT, seed=6, steps=700, batch_size=32)
    model = train.build_model(recipe, tokenizer)
    model.config.max_position_embeddings = LONGEST
    return model, tokenizer, train.learn(model, tokenizer, recipe, progress=progress)


RECIPES: dict[str, Callable[..., tuple[Any, Any, list[float]]]] = {
    "weaker": weaker,
    "tuned": tuned,
    "letters": letters,
    "stronger": stronger,
    "early": early,
}


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, space or mark."""
    signs = sorted({" ", *(sign for word in world.vocabulary() for sign in word)})
    splitter = pre_tokenizers.Split(Regex("."), "isolated")
    return train.numbered_tokenizer(signs, splitter, LONGEST)


def expert(name: str, cache: Path, progress: bool = False) -> tuple[Any, Any]:
    """The bundled expert, or one of `RECIPES`, trained where the cache does not hold it.

    Raises:
        ValueError: another name.
    """
    if name == "bundled":
        return demo.load("expert")
    if name not in RECIPES:
        raise ValueError(f"name must be 'bundled' or one of {list(RECIPES)}, came {name!r}")
    folder = cache / name
    if not folder.is_dir():
        _train(name, folder, progress)
    return load(folder, device="cpu", dtype=torch.float32)


def _train(name: str, folder: Path, progress: bool) -> None:
    torch.set_num_threads(1)  # sums are split among threads, and rounding with them
    model, tokenizer, losses = RECIPES[name](progress=progress)
    unfinished = folder.with_name(f"{name}.{os.getpid()}")
    train.save(model, tokenizer, unfinished)
    figures = {"loss": sum(losses[-50:]) / 50, "steps": len(losses)}
    (unfinished / "training.json").write_text(json.dumps(figures) + "\n", "utf-8")
    try:
        unfinished.rename(folder)
    except OSError:  # another process was first; its weights are the same
        shutil.rmtree(unfinished)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the experts of the study.")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    options = parser.parse_args()
    for name in options.only:
        expert(name, options.cache, progress=True)
        print(name, (options.cache / name / "training.json").read_text("utf-8").strip())


if __name__ == "__main__":
    main()
