"""Train the two demo checkpoints from nothing: ``python -m expertsteer.demo.train --out FOLDER``.

About four minutes on two cores. One machine and one release of torch give the same weights again;
elsewhere rounding differs, and with it the weights, though not what the models have learned.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..support.numbers import fixed
from ..support.progress import bar
from . import world

MAX_TOKENS = 128
TENSORS = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
SPECIAL = ("<pad>", "<s>", "<unk>")


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: its shape, what it reads and for how long."""

    width: int
    layers: int
    specialist_share: float  # of the documents in a dialect
    steps: int
    seed: int
    heads: int = 4
    batch_size: int = 64
    learning_rate: float = 4e-3


RECIPES = {
    # Hears both dialects equally often and cannot know which one a bare question is asked in.
    "target": Recipe(width=96, layers=4, specialist_share=0.5, steps=1400, seed=1),
    # Knows the coast, and of the hill enough to tell it apart.
    "expert": Recipe(width=64, layers=3, specialist_share=0.8, steps=1000, seed=2),
}


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """One token per word, numbered in an order of the seed: two checkpoints share no token ids."""
    words = world.vocabulary()
    random.Random(seed).shuffle(words)
    return numbered_tokenizer(words, pre_tokenizers.WhitespaceSplit(), MAX_TOKENS)


def numbered_tokenizer(
    pieces: list[str], splitter: pre_tokenizers.PreTokenizer, longest: int
) -> PreTrainedTokenizerFast:
    """One token per piece of text, numbered in their order behind `SPECIAL`; texts begin with
    ``<s>``, batches are padded on the left."""
    ids = {piece: i for i, piece in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=2 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        # The usual 0.02 suits widths in the thousands; at this one it stalls for half the training.
        initializer_range=0.8 * recipe.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def train(
    recipe: Recipe, steps: int | None = None, progress: bool = True
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Train one model, or its first ``steps``; returns it, its tokenizer and the losses (nats)."""
    tokenizer = build_tokenizer(recipe.seed)
    model = build_model(recipe, tokenizer)
    return model, tokenizer, learn(model, tokenizer, recipe, steps, progress)


def learn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    steps: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Let a model read the recipe's documents, or those of its first ``steps``.

    Returns the losses (nats); the model, new or trained before, is left in evaluation mode.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, max(0.01, 1 - step / recipe.steps))
    )
    rng, losses = random.Random(f"documents {recipe.seed}"), []
    name = f"{recipe.width} wide, {recipe.layers} layers"
    steps = recipe.steps if steps is None else steps
    with bar(steps, name, progress, delay=0) as told:
        for _ in range(steps):
            documents = [
                world.document(rng, recipe.specialist_share) for _ in range(recipe.batch_size)
            ]
            losses.append(_step(model, tokenizer(documents, **TENSORS), optimizer))
            schedule.step()
            told.set_postfix(loss=fixed(losses[-1], 3), refresh=False)
            told.update()
    model.eval()
    return losses


def _step(model: LlamaForCausalLM, batch: dict[str, Tensor], optimizer: Any) -> float:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    # Padding on the right of a causal model is never attended to; without a mask it is faster.
    loss = model(input_ids=batch["input_ids"], labels=labels, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Half precision on disk, single when loaded; the files load in transformers 4 and 5."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _edit(folder / "config.json", dtype="float32")
    # Transformers 5 writes a class name here that 4 does not know.
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    (folder / "model.safetensors").chmod(0o644)


def _edit(path: Path, **entries: str) -> None:
    document = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(out: Annotated[Path, typer.Option(help="Folder for expert/ and target/.")]) -> None:
    """Train the two demo checkpoints from nothing."""
    torch.set_num_threads(2)  # sums are split among threads, and rounding with them
    for name, recipe in RECIPES.items():
        model, tokenizer, losses = train(recipe)
        save(model, tokenizer, out / name)
        print(
            f"{name}: loss {fixed(sum(losses[-50:]) / 50, 3)} nats per token, saved in {out / name}"
        )


if __name__ == "__main__":
    typer.run(main)
