"""Find the decoder layers of any causal language model, by structure and not by family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# How configurations call the number of decoder layers, the most common name first.
_DEPTH_NAMES = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
# Where configurations of models with several modalities keep the language model's own.
_TEXT_CONFIG_NAMES = ("text_config", "llm_config", "language_config")


class DecoderNotFoundError(ValueError):
    """The decoder layers cannot be told from the model's structure, or the model has none."""


@dataclass(frozen=True)
class DecoderLayers:
    """Where the decoder layers of a model are.

    Attributes:
        decoder: the module that owns the list of layers and runs them in turn.
        decoder_path: its dotted path inside the model, ``""`` for the model itself.
        layers_path: the dotted path of the list.
        layers: the layers, counted from 0.
    """

    decoder: nn.Module
    decoder_path: str
    layers_path: str
    layers: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.layers)


def find_decoder(model: nn.Module, layers: str | None = None) -> DecoderLayers:
    """Find the list of decoder layers: the one ``nn.ModuleList`` as long as the config says.

    Args:
        model: a causal language model, such as `AutoModelForCausalLM` returns.
        layers: dotted path of the list (``"model.layers"``) where the search cannot decide.

    Raises:
        DecoderNotFoundError: no list or several fit, or ``layers`` does not name one; the
            message shows every list of modules in the model. An encoder-decoder, whatever
            ``layers`` says.
        ValueError: no model at all.
    """
    model = unwrapped(model)
    require_decoder_only(model)
    if layers is not None:
        return _described(model, layers, _named_list(model, layers))
    depth = config_depth(model)
    fitting = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and depth in (None, len(module))
    }
    candidates = _inside_decoder(model, _outermost(fitting))
    if len(candidates) != 1:
        wanted = "a list of decoder layers" if depth is None else f"a list of {depth} modules"
        found = "none" if not candidates else f"{len(candidates)} ({', '.join(candidates)})"
        raise DecoderNotFoundError(
            f"expected exactly one {wanted[2:]} in {type(model).__name__}, found {found}; "
            f"{_way_out(model)}"
        )
    ((path, module),) = candidates.items()
    return _described(model, path, module)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, whose graph would not run hooks added later."""
    return getattr(model, "_orig_mod", model)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model behind `torch.compile` and behind what shares it out over devices or processes.

    Raises:
        ValueError: no model.
    """
    if not isinstance(model, nn.Module):
        inside = isinstance(getattr(model, "model", None), nn.Module)
        way = "pass the model inside it, its attribute model" if inside else "load it first"
        raise ValueError(f"model must be a torch.nn.Module, came {type(model).__name__}; {way}")
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return getattr(model, "_orig_mod", None)


def require_one_copy(model: Any) -> None:
    """Refuse what copies the model at every pass, where nothing that is put into it would go along.

    Raises:
        ValueError: `torch.nn.DataParallel` over several devices.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                f"model: nn.DataParallel over devices {model.device_ids} copies its module at "
                "every pass, and copies would not be steered; pass model.module and run that, or "
                "use DistributedDataParallel"
            )
        model = _wrapped(model)


def require_decoder_only(model: nn.Module) -> None:
    """Refuse encoder-decoders, whose decoder does not run over the tokens that are given.

    Raises:
        DecoderNotFoundError: the model's configuration says that it is one.
    """
    model = unwrapped(model)
    configs = getattr(model, "config", None), text_config(model)
    if any(getattr(config, "is_encoder_decoder", False) is True for config in configs):
        raise DecoderNotFoundError(
            f"model: {type(model).__name__} is an encoder-decoder. Its encoder reads the text and "
            "its decoder other tokens, so that no decoder layer has a state at the text's tokens "
            "and a prompt has no places in it; pass a decoder-only language model, such as "
            "AutoModelForCausalLM loads"
        )


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model part; ``None`` for a model without one."""
    config = getattr(unwrapped(model), "config", None)
    for name in _TEXT_CONFIG_NAMES:
        nested = getattr(config, name, None)
        if nested is not None and not isinstance(nested, dict):
            return nested
    return config


def way_to_width(model: nn.Module) -> str:
    """How to come by a model that tells its width, for one that does not."""
    if getattr(model, "config", None) is not None:
        return "set model.config.hidden_size to the width of its decoder layers' outputs"
    inside = {path: m for path, m in model.named_modules() if getattr(m, "config", None)}
    if inside:
        named = (f"model.{p}, a {type(m).__name__}" for p, m in _outermost(inside).items())
        return f"pass the model inside it, {' or '.join(named)}, whose layers are the same modules"
    return (
        "give it a configuration, model.config = types.SimpleNamespace(hidden_size=...), with the "
        "width of its decoder layers' outputs"
    )


def config_depth(model: nn.Module) -> int | None:
    """How many decoder layers the configuration promises."""
    return first_integer(text_config(model), _DEPTH_NAMES)


def first_integer(config: Any, names: tuple[str, ...]) -> int | None:
    """The first attribute among ``names`` that is a positive integer."""
    values = (getattr(config, name, None) for name in names)
    return next((v for v in values if type(v) is int and v > 0), None)


def _named_list(model: nn.Module, path: str) -> nn.Module:
    try:
        module = model.get_submodule(path)
    except (AttributeError, TypeError):
        module = None
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
        came = "nothing there" if module is None else type(module).__name__
        raise DecoderNotFoundError(
            f"layers must be the dotted path of a non-empty nn.ModuleList or nn.Sequential in "
            f"{type(model).__name__}, came {path!r} ({came}); {_way_out(model)}"
        )
    return module


def _outermost(lists: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Without the lists inside another one's modules, such as as many experts as layers."""
    return {
        path: module
        for path, module in lists.items()
        if not any(path.startswith(f"{outer}.") for outer in lists)
    }


def _inside_decoder(model: nn.Module, lists: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Of several lists those inside what the model calls its decoder, or its language model."""
    if len(lists) < 2:
        return lists
    inside = {id(module) for part in _decoders(model) for module in part.modules()}
    return {path: module for path, module in lists.items() if id(module) in inside} or lists


def _decoders(model: nn.Module) -> Iterator[nn.Module]:
    if callable(getattr(model, "get_decoder", None)):
        try:
            named = model.get_decoder()
        except (AttributeError, NotImplementedError, TypeError):  # exotic models name none
            named = None
        if isinstance(named, nn.Module):
            yield named
            return
    kind = type(text_config(model))
    if kind is not type(getattr(model, "config", None)):
        yield from (m for m in model.modules() if type(getattr(m, "config", None)) is kind)


def _described(model: nn.Module, path: str, module: nn.Module) -> DecoderLayers:
    decoder_path = path.rpartition(".")[0]
    return DecoderLayers(
        decoder=model.get_submodule(decoder_path),
        decoder_path=decoder_path,
        layers_path=path,
        layers=tuple(module.children()) if isinstance(module, nn.Sequential) else tuple(module),
    )


def _way_out(model: nn.Module) -> str:
    """What to do, with every list of modules in the model; repeated ones are shown once."""
    seen = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and path:
            block = type(module[0]).__name__ if len(module) else "nothing"
            seen.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", path), f"{len(module)} x {block}")
    listing = "".join(f"\n  {path}: {what}" for path, what in seen.items()) or " none"
    return (
        "name the list by its dotted path, as find_decoder(model, layers=...) or "
        f"decoder_layers=... in capture and attach; lists of modules in this model:{listing}"
    )
