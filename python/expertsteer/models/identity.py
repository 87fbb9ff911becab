"""What tells one model from another: its name and, on disk, samples of its weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..support.reading import reading
from .decoder import unwrapped
from .description import describe

_BLOCK, _BLOCKS = 4096, 16  # bytes read in a place, places per file


def identity(model: nn.Module, decoder_layers: str | None = None) -> dict[str, Any]:
    """`describe`, and a ``fingerprint`` of the weights where they were loaded from a folder.

    Two folders with equal weights are one model. A model from the Hub is told by its revision,
    one that was never saved, or that carries adapters or soft prompts, by samples of its
    parameters. Weights that were changed in memory after loading are not looked at.
    """
    about = describe(model, decoder_layers)
    if _adapted(model):  # the name is the base model's, with any adapter
        return about | {"fingerprint": _of_parameters(model)}
    folder = Path(about["name"]) if about["name"] else None
    if folder is not None and folder.is_dir():
        return about | {"fingerprint": _of_files(folder)}
    return about | {"fingerprint": None if about["revision"] else _of_parameters(model)}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The fields in which two identities differ; a folder may have moved."""
    names = ["revision", "fingerprint", "architecture", "num_layers", "hidden_size", "dtype"]
    if one.get("fingerprint") is None:
        names.insert(0, "name")
    return [name for name in names if one.get(name) != other.get(name)]


def _adapted(model: nn.Module) -> bool:
    """Whether PEFT is around the model or inside it."""
    return any(type(m).__module__.partition(".")[0] == "peft" for m in model.modules())


def _of_files(folder: Path) -> str | None:
    """A digest over sizes and evenly spaced blocks of the weight files: training changes all."""
    digest, found = hashlib.sha256(), False
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".bin", ".gguf") or not path.is_file():
            continue
        found, size = True, path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with reading(path, "file of weights"), path.open("rb") as stream:
            for block in range(_BLOCKS):
                stream.seek(block * max(0, size - _BLOCK) // (_BLOCKS - 1), os.SEEK_SET)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest() if found else None


def _of_parameters(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in unwrapped(model).named_parameters():
        digest.update(f"{name}:{tuple(parameter.shape)};".encode())
        if parameter.device.type == "meta" or hasattr(parameter, "full_tensor"):
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64]
        digest.update(sample.cpu().double().numpy().tobytes())
    return digest.hexdigest()
