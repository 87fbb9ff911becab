"""Models and tokenizers of transformers, by path or Hub id.

The only file that imports transformers, and only when a model is loaded by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..support.paths import folder_or_id, local_path
from ..support.progress import shown
from ..support.ranks import Ranks
from .decoder import unwrapped
from .description import floating
from .gguf import as_ordinary, gguf_options, is_gguf, require_gguf_file

TENSOR_PARALLEL = "tensor_parallel"
_SPREAD = ("auto", TENSOR_PARALLEL)  # devices that are none


def load(
    path_or_model: str | os.PathLike | nn.Module,
    tokenizer: Any = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """A causal language model and its tokenizer, from a path, a Hub id or a model at hand.

    Args:
        path_or_model: a folder, a ``.gguf`` file (its weights become plain numbers), a Hub id,
            or a model, which is returned as it is.
        tokenizer: a tokenizer, or the path or id of one; by default the model's own.
        device: for a model given by name; the first GPU, or else the CPU, by default.
            ``"auto"`` spreads it over all devices (needs accelerate), ``"tensor_parallel"`` over
            the processes of `torch.distributed`, by transformers' plan for it.
        dtype: for a model given by name; by default the type its checkpoint is stored in.
        revision: Hub branch, tag or commit, for a model given by name.
        trust_remote_code: run the Python files of a repository that needs them, with your rights
            on this machine. Off, such a repository is refused, and nobody is asked.

    Raises:
        ValueError: nothing loadable under that name, a repository that needs
            ``trust_remote_code``, or a model without a tokenizer.
    """
    if isinstance(path_or_model, nn.Module):
        config = getattr(unwrapped(path_or_model), "config", None)
        tokenizer = tokenizer or getattr(config, "_name_or_path", None)
        if not tokenizer:
            raise ValueError(
                "tokenizer must be given with a model that was not loaded from a path or the Hub"
            )
        if isinstance(tokenizer, (str, os.PathLike)):
            trusted = {"trust_remote_code": trust_remote_code}
            tokenizer = _from_pretrained("AutoTokenizer", "tokenizer", tokenizer, **trusted)
        return path_or_model, tokenizer
    device = _usable_device(device)
    if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
        source, options = (tokenizer, {}) if tokenizer else (path_or_model, {"revision": revision})
        options["trust_remote_code"] = trust_remote_code
        tokenizer = _from_pretrained("AutoTokenizer", "tokenizer", source, **options)
    options = {"revision": revision, _dtype_option(): floating(dtype, "auto")}
    options["trust_remote_code"] = trust_remote_code
    if device == "auto":
        options["device_map"] = "auto"
    elif device == TENSOR_PARALLEL:
        options |= _tensor_parallel()
    model = _from_pretrained("AutoModelForCausalLM", "model", path_or_model, **options)
    return (model if device in _SPREAD else _placed(model, device)).eval(), tokenizer


def _tensor_parallel() -> dict[str, Any]:
    """How the installed transformers is asked for it."""
    size = Ranks.here().size
    if size == 1:
        raise ValueError(
            f"device={TENSOR_PARALLEL!r} needs several processes, came one; start them with "
            "torchrun --nproc-per-node 2 -m expertsteer ..."
        )
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=size)}
    except (ImportError, TypeError):  # releases before 5
        return {"tp_plan": "auto"}


def _placed(model: nn.Module, device: str | torch.device) -> nn.Module:
    """The model on a device; a quantised one stays where its weights were packed."""
    if not getattr(model, "is_quantized", False):
        return model.to(device)
    found = {p.device.type for p in model.parameters()}
    if torch.device(device).type not in found:
        raise ValueError(
            f"device {str(device)!r}: this checkpoint is quantised, was loaded onto "
            f"{', '.join(sorted(found))} and cannot be moved; leave device out, or pass 'auto'"
        )
    return model


def _from_pretrained(factory: str, kind: str, name: str | os.PathLike, **options: Any) -> Any:
    import transformers

    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"{kind} must be a path or Hub id, came {type(name).__name__}")
    path = folder_or_id(name, kind)
    if is_gguf(name):
        return _from_gguf(factory, kind, local_path(name, kind), **options)
    wanted = f"{kind} {str(name)!r} cannot be loaded"
    if not os.path.isdir(path) and not could_be_hub_id(name):
        raise ValueError(
            f"{wanted}: there is no folder of that name, and it is no Hub id (owner/name); "
            "check the path, or give the id of a model on the Hub"
        )
    require_bool("trust_remote_code", options["trust_remote_code"])
    options = {option: value for option, value in options.items() if value is not None}
    try:
        with _library_bars():
            return getattr(transformers, factory).from_pretrained(path, **options)
    except Exception as error:  # missing files, no network, damaged weights, unknown families
        require_no_remote_code(wanted, error)
        where = "in that folder" if os.path.isdir(path) else "on the Hub, nor is there a folder"
        raise ValueError(
            f"{wanted}: no usable one {where} ({type(error).__name__}: {error}); "
            "check the name, and for a Hub id the network and your access"
        ) from error


def _from_gguf(factory: str, kind: str, path: Path, **options: Any) -> Any:
    import transformers

    file = require_gguf_file(path, kind)
    require_bool("trust_remote_code", options.pop("trust_remote_code"))
    options = {name: value for name, value in options.items() if value is not None}
    if options.pop("revision", None) is not None:
        raise ValueError(f"revision is of a repository on the Hub, came one with the file {file}")
    of_model = kind == "model"
    options |= gguf_options(file, of_model)
    try:
        with _library_bars():
            loaded = getattr(transformers, factory).from_pretrained(file.parent, **options)
    except Exception as error:  # damaged files, families that transformers cannot read from GGUF
        raise ValueError(
            f"{kind} {str(path)!r} cannot be loaded: transformers does not read this GGUF file "
            f"({type(error).__name__}: {error}); give a folder of safetensors instead"
        ) from error
    return as_ordinary(loaded, file) if of_model else loaded


@contextmanager
def _library_bars() -> Iterator[None]:
    """The bars of transformers and the Hub, hidden where this package's are."""
    from huggingface_hub.utils import are_progress_bars_disabled as hub_is_quiet
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    own, hub = logging.is_progress_bar_enabled(), not hub_is_quiet()
    if shown() or not (own or hub):
        yield
        return
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if own:
            logging.enable_progress_bar()  # of the Hub too
        (enable_progress_bars if hub else disable_progress_bars)()


def require_no_remote_code(wanted: str, error: Exception) -> None:
    """Say which option is missing, if transformers refused to run a repository's own code."""
    if "trust_remote_code" in str(error):
        raise ValueError(
            f"{wanted}: its repository brings Python code of its own, which would run with your "
            "rights on this machine. Read that code, and pass trust_remote_code=True "
            "(--trust-remote-code) if you trust it; with a Hub id also name the revision you read"
        ) from error


def require_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):  # a path or "auto" here would count as yes
        raise ValueError(f"{name} must be True or False, came {value!r}")


def could_be_hub_id(name: str | os.PathLike) -> bool:
    parts = name.split("/") if isinstance(name, str) else ()
    return 0 < len(parts) <= 2 and all(p and p[0] not in ".~-" and "\\" not in p for p in parts)


def _dtype_option() -> str:
    """Releases before 5 know it as ``torch_dtype``, and 4.51 knows no other name."""
    import transformers

    return "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"


def _usable_device(device: str | torch.device | None) -> str | torch.device:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device not in _SPREAD:
            torch.empty(0, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device {device!r} cannot be used here: {reason}; pass 'cpu', or None to choose"
        ) from error
    return device
