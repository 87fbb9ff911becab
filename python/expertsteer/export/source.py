"""The checkpoint that is exported: which of its files hold weights, and its model without them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.gguf import is_gguf
from ..models.loading import could_be_hub_id, require_no_remote_code
from ..support.hub import download
from ..support.paths import folder_or_id, local_path
from ..support.reading import (
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    ArtifactError,
    checked_field,
    either,
    listed,
    optional,
    reading,
)
from .tensor_files import FLOATING, StoredTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Other forms of the weights: they hold the unsteered model.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf",
                  ".onnx", ".onnx_data", ".ot", ".tflite", ".npz", ".pkl", ".pickle",
                  ".index.json")  # fmt: skip


@dataclass(frozen=True)
class SourceCheckpoint:
    """A checkpoint folder, opened: nothing of its weights is in memory.

    Attributes:
        folder: where it is.
        name: what the user called it; hub_id: the same where it came from the Hub, else empty.
        config: its ``config.json``.
        index: its index of shards; empty where one file holds all weights.
        shards: ``{file name: (tensors by name, metadata of the file)}``.
    """

    folder: Path
    name: str
    hub_id: str
    revision: str | None
    config: dict[str, Any]
    index: dict[str, Any]
    shards: dict[str, tuple[dict[str, StoredTensor], dict[str, str]]]

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return {name: t for tensors, _ in self.shards.values() for name, t in tensors.items()}

    def other_files(self) -> tuple[list[Path], list[Path]]:
        """Files beside weights and configuration, relative: those to copy, those left out."""
        kept, left_out = [], []
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if not path.is_file() or any(part.startswith(".") for part in relative.parts):
                continue
            if relative.as_posix() in ("config.json", INDEX, *self.shards):
                continue
            (left_out if path.name.endswith(_OTHER_WEIGHTS) else kept).append(relative)
        return kept, left_out


def open_source(source: str | os.PathLike, revision: str | None = None) -> SourceCheckpoint:
    """Open a checkpoint folder, or download it from the Hub where there is no such folder.

    Raises:
        ValueError: neither a folder nor a Hub repository that could be downloaded; a checkpoint
            that is quantised, pickled, an adapter, or incomplete.
        ArtifactError: a file of it is damaged.
    """
    if is_gguf(source):
        raise ValueError(
            f"model {str(source)!r} is a GGUF file, whose weights have few bits; load it "
            "(model, tokenizer = models.loading.load(file)), save_pretrained both into a folder, "
            "and export that, or export a control vector (--format gguf)"
        )
    folder, hub_id = local_path(source, "model"), ""
    if not folder.is_dir():
        folder, hub_id = _downloaded(str(source), revision), str(source)
        revision = folder.name if folder.parent.name == "snapshots" else revision
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model {str(source)!r} is an adapter, not a whole model; merge it into its base with "
            "peft's merge_and_unload, save the result, and export that folder"
        )
    config = read_json(folder / "config.json")
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(
            f"model {str(source)!r} is quantised (config.json has a quantization_config), and a "
            "bias of full precision would not fit its stored form; export from the checkpoint "
            "that is not quantised, then quantise the exported folder"
        )
    # Where both are there, transformers loads the single file.
    sharded = (folder / INDEX).is_file() and not (folder / SINGLE).is_file()
    index = read_json(folder / INDEX) if sharded else {}
    if sharded and not index:
        raise ArtifactError(f"{folder / INDEX} is empty; download or copy it again")
    counts = checked_field(index, "metadata", optional(OBJECT), folder / INDEX, default=None) or {}
    for name in ("total_size", "total_parameters"):
        checked_field(counts, name, either(WHOLE, NUMBER), f"{folder / INDEX}, metadata", default=0)
    kind = optional(listed(TEXT))
    checked_field(config, "architectures", kind, folder / "config.json", default=None)
    names = _shard_names(folder, index)
    shards = {name: read_header(folder / name) for name in names}
    return SourceCheckpoint(folder, str(source), hub_id, revision, config, index, shards)


def model_without_weights(source: SourceCheckpoint, real: Iterable[str] = ()) -> nn.Module:
    """The stock model of a checkpoint: shapes and types, one zero standing for all its weights.

    Its parameters take no memory to speak of, and its code can be asked, and changed, like that
    of a loaded model.

    Args:
        source: an opened checkpoint.
        real: names of tensors of the checkpoint to load all the same.

    Raises:
        ValueError: a model that is not transformers' own, or another kind than its architecture.
    """
    model = model_of_config(source.folder, source.name)
    said = source.config.get("architectures") or [type(model).__name__]
    if type(model).__name__ not in said:
        raise ValueError(
            f"model {source.name!r} is a {said[0]}; only causal language models can be exported "
            f"(a {type(model).__name__} of this family)"
        )
    model.config._name_or_path = source.name
    stored, real = source.tensors, set(real)
    for name, blank in model.state_dict(keep_vars=True).items():
        tensor = stored.get(disk_name(model, name, stored) or "")
        if tensor is not None and tensor.shape != tuple(blank.shape):
            raise ArtifactError(
                f"{tensor.path}: tensor {tensor.name!r} has shape {tensor.shape}, config.json "
                f"says {tuple(blank.shape)}; the two belong to different models"
            )
        if tensor is not None and tensor.name in real:
            value = tensor.load()
        else:
            dtype = blank.dtype if tensor is None else FLOATING.get(tensor.dtype, torch.uint8)
            value = torch.zeros((), dtype=dtype, device="cpu").expand(blank.shape)
        _put(model, name, value, blank)
    model.tie_weights()
    return model.eval()


def model_of_config(
    source: str | os.PathLike,
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The stock causal language model of a ``config.json`` (a folder's, or a Hub id's), on the
    meta device; nothing but that file is read or downloaded.

    Raises:
        ValueError: with ``name``, where transformers makes none of it.
    """
    import transformers

    source = folder_or_id(source, "model")
    try:
        config = transformers.AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # no such file, unknown families, foreign values, code on the Hub
        require_no_remote_code(f"model {name!r} cannot be made from its config.json", error)
        raise ValueError(
            f"model {name!r}: transformers makes no causal language model of its config.json "
            f"({type(error).__name__}: {error})"
        ) from error


def disk_name(model: nn.Module, name: str, stored: Iterable[str]) -> str | None:
    """What the checkpoint calls a weight of the model: some leave the outermost prefix out."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    for candidate in (name, name.removeprefix(prefix)):
        if candidate in stored:
            return candidate
    return None


def _put(model: nn.Module, name: str, value: Tensor, blank: Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(blank, nn.Parameter):
        value = nn.Parameter(value, requires_grad=value.is_floating_point())
        owner._parameters[last] = value
    else:
        owner._buffers[last] = value


def _shard_names(folder: Path, index: dict[str, Any]) -> list[str]:
    if index:
        try:
            names = sorted(set(index["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise ValueError("a shard outside the folder")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"{folder / INDEX} has no readable weight_map ({type(error).__name__}: {error}); "
                "download or copy it again"
            ) from error
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        what = f"only pickled weights ({pickled[0]})" if pickled else f"no {SINGLE} and no {INDEX}"
        raise ValueError(
            f"model folder {str(folder)!r} holds {what}; load it once with transformers and "
            "save_pretrained it, which writes safetensors, and export that folder"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"model folder {str(folder)!r} lacks {missing[0]}, which {INDEX} names; download or "
            "copy the checkpoint again"
        )
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a json file of a checkpoint folder, or an error that names the file."""
    if not path.exists():
        raise ValueError(
            f"model folder {str(path.parent)!r} holds no {path.name}; give the folder of a "
            "checkpoint that transformers loads"
        )
    with reading(path, "json file"):
        document = json.loads(path.read_bytes().decode("utf-8"))
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} holds a {type(document).__name__}, expected a json object")
    return document


def _downloaded(name: str, revision: str | None) -> Path:
    if not could_be_hub_id(name):
        raise ValueError(
            f"model {name!r}: there is no folder of that name, and it is no Hub id (owner/name)"
        )
    unwanted = [f"*{ending}" for ending in _OTHER_WEIGHTS[1:-1]] + ["original/*"]
    return download("model", name, revision, ignore_patterns=unwanted)
