"""What stands in for a layer and for ``generate`` in a live model while it is steered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models.stand_ins import Unmovable
from ..ops import choose
from ..ops.steering import native, reference
from ..support.tracing import is_traced, is_transformed
from .arming import standing
from .extension import Slot, set_traced_call
from .state import State
from .traced import SharedByLayers, handing


class LayerSlot(Unmovable, Slot):
    """A steered layer: its own forward, then the operation. Calls are `csrc/slots/slot.cpp`."""

    def __init__(self, steering: State, index: int, layer: nn.Module, backend: str):
        super().__init__(layer.forward, self.steer, steering.passes)
        functools.update_wrapper(self, layer.forward)
        self.steering, self.index, self.layer, self.backend = steering, index, layer, backend
        self.detached = False
        # Its place among the steered layers, while attached: all that a graph with a shared
        # look-up reads, and checks, of a slot.
        self.place: int | None = steering.bank.layers.index(index)
        # What a compiler follows: through the bound method it would check each layer once more.
        bound = inspect.ismethod(layer.forward) and layer.forward.__self__ is layer
        self.function_of_layer = layer.forward.__func__ if bound else None
        bank = steering.bank  # a graph reads, and checks, only what the operation needs
        self.needs_norms = bank.gate is not None or bank.operation in ("remove", "clamp")
        # Chosen now, so that a backend that cannot serve is refused when attaching.
        nothing = torch.empty(0, dtype=torch.float32, device="cpu")
        weight = next((p for p in layer.parameters() if p.is_floating_point()), nothing)
        device = torch.device("cpu") if weight.device.type == "meta" else weight.device
        self._prepare(device, weight.dtype)

    def _prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready for states of that kind; the quick way is armed where it serves them."""
        if hasattr(self, "kind"):  # the model was moved: graphs look each buffer up again
            self.steering.tables = None
        self.kind = device, dtype
        self.function = choose("steer", self.backend, device, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.buffers = self.steering.bank.buffers(self.index, device, wide)
        self.rearm()

    def retire(self) -> None:
        """From now on only the layer's own forward, also for graphs that hold this slot."""
        super().retire()
        self.place = None

    def rearm(self) -> None:
        """Hand the addresses of the buffers to the quick way, or take them back."""
        self.disarm()
        if self.function is native.steer:
            self.arm(*standing(self.buffers, self.kind[1], self.steering.operation))

    def steer(self, output: Any) -> Any:
        """What came out of the layer, steered, wherever the quick way does not serve.

        ``None`` asks before the layer runs whether it may, outside of any open pass.
        """
        if output is None:
            return self._require_pass()
        if isinstance(output, (tuple, list)):
            steered = self.steer(output[0])
            if isinstance(output, tuple) and type(output) is not tuple:
                return output._replace(**{output._fields[0]: steered})
            return type(output)((steered, *output[1:]))
        opened = self.steering.current.opened  # none where the quick way steers every token
        traced = is_traced(output)
        if traced and opened is None:
            return self.traced(output)
        if not isinstance(output, Tensor) or output.ndim != 3:
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RuntimeError(
                f"layer {self.index} must return hidden states [batch, tokens, width], came {came}"
            )
        if self.kind != (output.device, output.dtype):
            self._prepare(output.device, output.dtype)
        mask = None if opened is None else opened.mask
        if mask is not None:
            mask = mask.to(output.device)
        # Who follows would not see a change through a pointer.
        followed = traced or is_transformed(output)
        return self._steered(reference.steer if followed else self.function, output, mask)

    def _require_pass(self) -> None:
        steering = self.steering
        compiles = torch.compiler.is_compiling() or steering.traced.mask is not None
        here = steering.current
        if here.opened is None and not here.folded and not compiles:
            raise RuntimeError(
                f"layer {self.index} of a steered model was called outside its decoder's forward, "
                "where its padding and positions are unknown; call the model, or detach"
            )

    def traced(self, hidden: Any) -> Any:
        """The same in plain torch operations, for compilers."""
        mask = self.steering.traced.mask
        if mask is not None:
            mask = mask.to(hidden.device)
        return self._steered(reference.steer, hidden, mask)

    def _steered(self, function: Callable, hidden: Any, mask: Tensor | None) -> Any:
        own = self.buffers
        rows, strengths = own.rows, own.strengths
        batch = hidden.shape[0]
        if rows.shape[0] not in (1, batch):  # beams and samples of one sequence are neighbours
            rows = rows.repeat_interleave(batch // rows.shape[0], dim=0)
            strengths = strengths.repeat_interleave(batch // strengths.shape[0], dim=0)
        return function(
            hidden,
            own.table,
            rows,
            strengths,
            mask,
            operation=self.steering.operation,
            gates=own.gates,
            thresholds=own.thresholds,
            inverse_norms=own.inverse_norms if self.needs_norms else None,
        )


def _traced_call(self: LayerSlot, *args: Any, **kwargs: Any) -> Any:
    """The call of a `LayerSlot` as a compiler sees it."""
    shared = handing.now
    if shared is not None and self.place is not None:
        function = shared.function or self.function_of_layer
        output = function(shared.layers[self.place], *args, **kwargs)
        if isinstance(output, tuple):
            return (_steered_alike(output[0], shared, self.place), *output[1:])
        return _steered_alike(output, shared, self.place)
    output = self.original(*args, **kwargs)
    if self.detached:
        return output
    if isinstance(output, tuple):
        return (self.traced(output[0]), *output[1:])
    return self.traced(output)


set_traced_call(LayerSlot, _traced_call)


def _steered_alike(hidden: Tensor, shared: SharedByLayers, place: int) -> Tensor:
    """One layer's addition with what all layers share."""
    if shared.added is not None:
        return (hidden.to(shared.added.dtype) + shared.added[place]).to(hidden.dtype)
    table, operation = shared.tables[place], shared.operation
    return reference.steer(
        hidden, table, shared.rows, shared.strengths, shared.mask, operation=operation
    )
