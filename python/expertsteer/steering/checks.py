"""What is checked, and chosen, before a model is steered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.families import last_linear, why_not_foldable
from ..models.decoder import find_decoder
from ..models.description import describe, hidden_size
from ..ops import STEER_OPERATIONS
from ..support.tensors import as_tensor, require_constants
from ..vectors.metadata import model_of
from ..vectors.vectors import SteeringVectors
from .bank import Bank, Gate
from .given_positions import Positions
from .state import State

MODES = ("auto", "fold", "slot")


def by_name(vectors: Any) -> dict[Any, SteeringVectors]:
    """Vectors by name; those of a list by their place, a single one by 0.

    Raises:
        ValueError: none at all, or something that is no `SteeringVectors`.
    """
    if isinstance(vectors, SteeringVectors):
        return {0: vectors}
    if isinstance(vectors, Mapping):
        experts = dict(vectors)
    elif isinstance(vectors, Sequence) and not isinstance(vectors, (str, bytes)):
        experts = dict(enumerate(vectors))
    else:
        experts = {0: vectors}
    if not experts:
        raise ValueError("vectors must hold at least one SteeringVectors, came none")
    for name, one in experts.items():
        if not isinstance(one, SteeringVectors):
            where = f" named {name!r}" if one is not vectors else ""
            raise ValueError(f"vectors{where} must be SteeringVectors, came {type(one).__name__}")
    return experts


def checked_experts(
    model: nn.Module,
    vectors: Any,
    decoder: Any,
    check_model: bool,
    operation: str,
    gate: Gate | None,
) -> dict[Any, SteeringVectors]:
    """Vectors that fit the model, by name.

    Raises:
        ValueError: see `attach`.
    """
    experts = by_name(vectors)
    if operation not in STEER_OPERATIONS:
        raise ValueError(f"operation must be one of {STEER_OPERATIONS}, came {operation!r}")
    for one in experts.values():
        require_constants(one.vectors)  # which may have been set after these were made
        require_effect(one)
        _check_fit(model, one, decoder, check_model)
    if gate is not None:
        if not isinstance(gate, Gate):
            raise ValueError(f"gate must be a Gate or None, came {type(gate).__name__}")
        require_effect(gate.vectors)
        _check_fit(model, gate.vectors, decoder, check_model)
        layers = {i for one in experts.values() for i in one.layers}
        missing = sorted(layers - set(gate.vectors.layers))
        if missing:
            raise ValueError(f"gate has no vector at the steered layers {missing}")
    return experts


def choose_mode(
    steering: State, positions: Positions, mode: str, decoder_layers: str | None
) -> str:
    """``"fold"`` or ``"slot"``.

    Raises:
        ValueError: an unknown mode; ``"fold"`` where it is not exact, with the reason.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, came {mode!r}")
    if mode == "slot" or (mode == "auto" and steering.backend != "auto"):
        return "slot"
    bank, model = steering.bank, steering.model
    reason = _why_not_fold(model, bank, positions, decoder_layers)
    if reason is None:
        # Beside a bias that is there a slot costs less than the sum of both in every pass.
        own = mode == "auto" and _have_biases(model, bank.layers, decoder_layers)
        return "slot" if own else "fold"
    if mode == "fold":
        raise ValueError(f'mode="fold" cannot serve this: {reason}; use mode="slot" or "auto"')
    return "slot"


def require_distinct(decoder: Any, layers: Sequence[int]) -> None:
    """Every steered layer is a module of its own.

    Raises:
        ValueError: with the places where the same one stands.
    """
    for i in layers:
        places = [j for j, other in enumerate(decoder.layers) if other is decoder.layers[i]]
        if len(places) > 1:
            raise ValueError(
                f"layers {places} of {decoder.layers_path} are one and the same module, so a "
                f"vector at layer {i} would be added at each of them; give the model a copy "
                "(copy.deepcopy) at each place, or steer other layers"
            )


def _why_not_fold(
    model: nn.Module, bank: Bank, positions: Positions, decoder_layers: str | None
) -> str | None:
    if bank.operation != "add" or bank.gate is not None:
        return "only an ungated addition is a bias"
    if not isinstance(positions, str) or positions != "all":
        return 'only positions="all" is a bias'
    for index in bank.layers:
        layer = find_decoder(model, decoder_layers).layers[index]
        if "forward" in layer.__dict__ and not hasattr(
            layer, "_hf_hook"
        ):  # accelerate's moves data
            return f"the forward of layer {index} was replaced, and may change what it adds"
        if reason := why_not_foldable(model, index, decoder_layers):
            return reason
    return None


def _have_biases(model: nn.Module, layers: Sequence[int], decoder_layers: str | None) -> bool:
    return any(last_linear(model, i, decoder_layers).bias is not None for i in layers)


def checked_prompt_length(length: Any) -> int | Tensor | None:
    """A number of tokens, ``[batch]`` of them as int64, or ``None``."""
    if length is None or (type(length) is int and length >= 0):
        return length
    lengths = as_tensor(length) if isinstance(length, (list, tuple, Tensor)) else None
    whole = lengths is not None and not (lengths.is_floating_point() or lengths.is_complex())
    if not whole or lengths.ndim != 1 or bool((lengths < 0).any()):
        raise ValueError(
            "prompt_length must be a number of tokens, one per sequence ([batch]), or None; came "
            f"{length!r}"
        )
    return lengths.to(torch.int64)


def require_effect(vectors: SteeringVectors) -> None:
    """No vector of zeros.

    Raises:
        ValueError: with the layers.
    """
    idle = [layer for layer, vector in vectors.vectors.items() if not bool((vector != 0).any())]
    if idle:
        raise ValueError(f"vectors at layers {idle} are all zero and would have no effect")


def _check_fit(model: nn.Module, vectors: SteeringVectors, decoder: Any, check_model: bool) -> None:
    depth = len(decoder.layers)
    for layer in vectors.layers:
        if layer >= depth:
            raise ValueError(
                f"vectors: layer {layer} is out of range for a model with {depth} layers "
                f"(0..{depth - 1})"
            )
    width = hidden_size(model)
    if vectors.width != width:
        raise ValueError(
            f"vectors have width {vectors.width}, the model's hidden size is {width}; they were "
            "fitted for another model"
        )
    fitted_for = model_of(vectors.metadata, "target")
    here = describe(model, decoder.layers_path)
    for name in ("architecture", "num_layers"):
        if check_model and name in fitted_for and fitted_for[name] != here.get(name):
            raise ValueError(
                f"vectors were fitted for a model with {name} {fitted_for[name]!r}, this one has "
                f"{here.get(name)!r}; pass check_model=False to steer it all the same"
            )
