"""Models from transformers: load one, describe it, capture its hidden states.

The only file that imports transformers, and only when a model is loaded by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._decoder import (
    DecoderLayers,
    DecoderNotFoundError,
    config_depth,
    find_decoder,
    first_integer,
    text_config,
    unwrapped,
    way_to_width,
)
from ._forward import token_embedding
from ._paths import folder_or_id
from ._reader import Reader, floating, model_dtype
from ._tokens import warn_of_cut
from .artifacts import HiddenStates
from .contrast import ContrastSet

__all__ = [
    "DecoderLayers",
    "DecoderNotFoundError",
    "capture",
    "describe",
    "find_decoder",
    "hidden_size",
    "load",
]


TENSOR_PARALLEL = "tensor_parallel"
_SPREAD = ("auto", TENSOR_PARALLEL)  # devices that are none


def capture(
    model: nn.Module,
    tokenizer: Any,
    contrast: ContrastSet,
    *,
    layers: int | Iterable[int] | None = None,
    position: str | int = "last",
    batch_size: int = 16,
    dtype: torch.dtype | str | None = None,
    max_length: int | None = None,
    decoder_layers: str | None = None,
    progress: bool = True,
) -> HiddenStates:
    """Run a model over a contrast set and keep one state per example and decoder layer.

    A state is the layer's output: the residual stream after the block, before any final norm.
    Chat messages go through the tokenizer's chat template; when the last message is not the
    assistant's, the opening of the assistant's turn is appended. A text that was rendered before
    gets no second beginning of sequence. The model comes back as it was.

    Args:
        model: read as it runs, adapters, soft prompts and prefixes included; what stands before
            the text is never taken for it.
        tokenizer: of this model; of a processor its tokenizer is used.
        layers: decoder-layer indices counted from 0; every layer by default. The result holds
            them in increasing order.
        position: ``"last"``, the last token that is not padding (special tokens count);
            ``"mean"`` over all tokens; or an index, from the end of the text when negative.
        batch_size: examples per forward pass.
        dtype: of the result: ``None`` or ``"model"`` for the model's own, or a floating-point
            type such as ``torch.float32``.
        max_length: cut longer examples to so many tokens, with a warning; never cut by default.
        decoder_layers: dotted path of the list of layers where `find_decoder` needs it.
        progress: show a bar over the examples.

    Returns:
        HiddenStates on the CPU: ``states [L, N, D]``, ``labels [N]``, ``keys [N]``, in the order
        of the contrast set, whatever the order of the batches.

    Raises:
        ValueError: an argument out of its range, no decoder layers found, an encoder-decoder, no
            tokenizer, messages without a chat template, an example without tokens or longer than
            the model allows, a position outside an example, a NaN or infinite state (with its layer
            and example).
    """
    if not isinstance(contrast, ContrastSet):
        raise ValueError(f"contrast must be a ContrastSet, came {type(contrast).__name__}")
    reader = Reader(
        model,
        tokenizer,
        layers=layers,
        position=position,
        batch_size=batch_size,
        dtype=dtype,
        max_length=max_length,
        decoder_layers=decoder_layers,
    )
    tokens, cut = reader.tokens(contrast)
    warn_of_cut(cut, len(contrast), max_length, stacklevel=2)
    bar = tqdm(total=len(contrast), desc="capture", unit="example", delay=2, leave=False,
               disable=not progress)  # fmt: skip
    with bar:
        states = reader.states(tokens, on_batch=bar.update)
    return HiddenStates(
        states=states,
        labels=torch.tensor(contrast.labels, dtype=torch.int64, device="cpu"),
        layers=reader.layers,
        keys=torch.tensor(contrast.keys, dtype=torch.int64, device="cpu"),
        pairs=_pair_numbers(contrast.pairs),
        position=position,
        model=describe(model, decoder_layers) | {"hidden_size": states.shape[2]},
    )


def describe(model: nn.Module, decoder_layers: str | None = None) -> dict[str, Any]:
    """Where states and vectors come from: plain values that fit into a json file.

    Returns:
        ``name`` (the path or id it was loaded from), ``revision`` (the Hub commit, if any),
        ``architecture`` (class name), ``num_layers``, ``hidden_size`` and ``dtype``; ``None``
        for what the model does not tell.
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    try:
        depth = len(find_decoder(model, decoder_layers))
    except DecoderNotFoundError:
        if decoder_layers is not None:
            raise
        depth = config_depth(model)
    return {
        "name": getattr(config, "_name_or_path", None) or None,
        "revision": getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "num_layers": depth,
        "hidden_size": _told_width(model),
        "dtype": str(model_dtype(model)).removeprefix("torch."),
    }


def hidden_size(model: nn.Module) -> int:
    """The width of the residual stream.

    Raises:
        ValueError: neither the configuration nor the token embedding tells it.
    """
    model = unwrapped(model)
    width = _told_width(model)
    if width is None:
        raise ValueError(
            f"model: {type(model).__name__} does not tell its width; {way_to_width(model)}"
        )
    return width


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
        path_or_model: a folder, a Hub id, or a model, which is returned as it is.
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
    from ._ranks import Ranks

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
    wanted = f"{kind} {str(name)!r} cannot be loaded"
    if not os.path.isdir(path) and not _could_be_hub_id(name):
        raise ValueError(
            f"{wanted}: there is no folder of that name, and it is no Hub id (owner/name); "
            "check the path, or give the id of a model on the Hub"
        )
    require_bool("trust_remote_code", options["trust_remote_code"])
    options = {option: value for option, value in options.items() if value is not None}
    try:
        return getattr(transformers, factory).from_pretrained(path, **options)
    except Exception as error:  # missing files, no network, damaged weights, unknown families
        require_no_remote_code(wanted, error)
        where = "in that folder" if os.path.isdir(path) else "on the Hub, nor is there a folder"
        raise ValueError(
            f"{wanted}: no usable one {where} ({type(error).__name__}: {error}); "
            "check the name, and for a Hub id the network and your access"
        ) from error


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


def _could_be_hub_id(name: str | os.PathLike) -> bool:
    parts = name.split("/") if isinstance(name, str) else ()
    return 0 < len(parts) <= 2 and all(p and p[0] not in ".~-" and "\\" not in p for p in parts)


def _dtype_option() -> str:
    """Releases before 5 know it as ``torch_dtype``, and 4.51 knows no other name."""
    import transformers

    return "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"


def _pair_numbers(pairs: Iterable[int | None]) -> Tensor | None:
    """Pairs numbered from 0, -1 for examples that stand alone; ``None`` where all do."""
    order: dict[int, int] = {}
    numbers = [-1 if p is None else order.setdefault(p, len(order)) for p in pairs]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu") if order else None


def _told_width(model: nn.Module) -> int | None:
    width = first_integer(text_config(model), ("hidden_size", "n_embd", "d_model", "dim"))
    weight = getattr(token_embedding(model), "weight", None)
    return weight.shape[-1] if width is None and isinstance(weight, Tensor) else width


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
