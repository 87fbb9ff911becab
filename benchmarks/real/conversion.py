"""A GGUF file as a folder of safetensors with its tokenizer, loaded again and compared."""

from __future__ import annotations

import gc
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.real.parts import content
from benchmarks.real.sources import Source
from expertsteer.models.loading import load
from expertsteer.support.digests import digests
from expertsteer.support.numbers import size_text
from expertsteer.support.writing import appearing

# The type that these models were published in. Half as large as single precision, and its rounding
# is far below that of the four bits that the weights were stored in.
DTYPE = torch.bfloat16
BOUND = 1e-2  # of the largest logit: the last digits of bfloat16, where memory lies otherwise
TEXT = "The capital of France is Paris, and 2 + 3 = 5.\nThe capital of Italy is"
RECORD = "fetched.json"


def memory_needed(source: Source) -> int:
    """Bytes at the peak of `convert`: the weights, and the largest of them while it is read."""
    return DTYPE.itemsize * source.parameters + (3 << 30)


def require_memory(source: Source) -> None:
    """Raise ``ValueError`` where the machine has less free than `convert` takes.

    A system that does not say how much that is passes.
    """
    free, needed = free_memory(), memory_needed(source)
    if free is not None and free < needed:
        raise ValueError(
            f"{source.title} needs about {size_text(needed)} of memory to be converted, "
            f"{size_text(free)} are free; end other programs and give the same command again: it "
            "goes on from here"
        )


def free_memory() -> int | None:
    """Bytes that programs can still have, as Linux says; ``None`` elsewhere."""
    information = Path("/proc/meminfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    kib = next(found, None)
    return None if kib is None else int(kib) << 10


def record(source: Source) -> dict[str, Any]:
    """What a folder was made of: it is made anew where this differs."""
    packages = [f"{part.package}=={part.version}" for part in source.parts]
    return {"gguf": source.gguf, "sha256": source.sha256, "dtype": str(DTYPE), "from": packages}


def is_converted(source: Source, out: Path) -> bool:
    """Whether ``out`` is the finished folder of that source.

    Raises:
        ValueError: there is something else.
    """
    if not out.exists():
        return False
    try:
        found = json.loads((out / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or {**found, **record(source)} != found:
        raise ValueError(
            f"{out} must be new, or be made from {source.gguf} with the written sha256, as its "
            f"{RECORD} would say; remove that folder, or choose another with --out"
        )
    return True


def convert(source: Source, gguf: Path, wheels: Path, out: Path) -> None:
    """Write ``out`` from a checked file; it appears when it has been loaded again and compared.

    Raises:
        ValueError: the folder does not give the weights, tokens and logits of the file.
    """
    with appearing(out) as folder:
        write(gguf, folder)
        for part in source.terms:
            text = b"".join(content(part, wheels))
            (folder / Path(part.file).name).write_bytes(text)
        made = record(source) | {"transformers": metadata.version("transformers")}
        (folder / RECORD).write_text(json.dumps(made, indent=2) + "\n", "utf-8")


def write(gguf: Path, folder: Path) -> None:
    """The weights, settings and tokenizer of a GGUF file in `DTYPE`, read back and compared.

    Raises:
        ValueError: what is read back differs.
    """
    model, tokenizer = load(gguf, device="cpu", dtype=DTYPE)
    ids = tokenizer(TEXT)["input_ids"]
    logits, weights = _logits(model, ids), digests(model.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    gc.collect()
    again, tokenizer = load(folder, device="cpu", dtype=DTYPE)
    found = tokenizer(TEXT)["input_ids"]
    if found != ids:
        raise ValueError(f"{folder}: the text must give the tokens {ids}, came {found}")
    if digests(again.state_dict()) != weights:
        raise ValueError(f"{folder}: the weights read back are not those of {gguf.name}")
    difference = float((_logits(again, ids) - logits).abs().max() / logits.abs().max())
    if not difference <= BOUND:
        raise ValueError(
            f"{folder}: logits must be those of {gguf.name} within {BOUND:g} of the largest, "
            f"came {difference:g}"
        )


def continuation(folder: Path, prompt: str, tokens: int) -> tuple[dict[str, Any], str]:
    """What a fetched model is, and the most likely words after a prompt."""
    model, tokenizer = load(folder, device="cpu")
    config = model.config
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**encoded, max_new_tokens=tokens, do_sample=False)
    told = {
        "config": type(config).__name__,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "words": len(tokenizer),
        "tokenizer": type(tokenizer).__name__,
    }
    return told, tokenizer.decode(made[0, encoded["input_ids"].shape[1] :])


def _logits(model: nn.Module, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()
