"""What stands in for the methods of a live model while it is steered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import ops
from ._checkpointing import watch
from ._entry import Decoder, Slot, all_finite, set_traced_call
from ._positions import POSITIONS, Prompt, token_mask
from ._traced import SharedByLayers, handing
from ._tracing import is_traced
from .ops import native_steer, reference_steer
from .ops.standing import standing

if TYPE_CHECKING:
    from ._installed import Installed


class _Unmovable:
    """Stands in for a method of a live model, so it must not travel with a copy of it."""

    def __deepcopy__(self, memo: Any):
        raise ValueError("a steered model cannot be deep-copied; detach the steering first")

    def __reduce_ex__(self, protocol: int):
        raise ValueError("a steered model cannot be pickled; detach the steering first")


class LayerSlot(_Unmovable, Slot):
    """A steered layer: its own forward, then the operation. Calls are `csrc/slot.cpp`."""

    def __init__(self, steering: Installed, index: int, layer: nn.Module, backend: str):
        super().__init__(layer.forward, self.steer, steering.passes)
        functools.update_wrapper(self, layer.forward)
        self.steering, self.index, self.layer, self.backend = steering, index, layer, backend
        self.detached, self.place = False, steering.bank.layers.index(index)
        # What a compiler follows: through the bound method it would check each layer once more.
        bound = inspect.ismethod(layer.forward) and layer.forward.__self__ is layer
        self.function_of_layer = layer.forward.__func__ if bound else None
        bank = steering.bank  # a graph reads, and checks, only what the operation needs
        self.needs_norms = bank.gate is not None or bank.operation in ("remove", "clamp")
        # Chosen now, so that a backend that cannot serve is refused when attaching.
        weight = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
        device = torch.device("cpu") if weight.device.type == "meta" else weight.device
        self._prepare(device, weight.dtype)

    def _prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready for states of that kind; the quick way is armed where it serves them."""
        if hasattr(self, "kind"):  # the model was moved: graphs look each buffer up again
            self.steering.tables = None
        self.kind = device, dtype
        self.function = ops.choose("steer", self.backend, device, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.buffers = self.steering.bank.buffers(self.index, device, wide)
        self.rearm()

    def rearm(self) -> None:
        """Hand the addresses of the buffers to the quick way, or take them back."""
        self.disarm()
        if self.function is native_steer.steer:
            self.arm(*standing(self.buffers, *self.kind, self.steering.operation))

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
        if is_traced(output):
            return self.traced(output)
        if not isinstance(output, Tensor) or output.ndim != 3:
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RuntimeError(
                f"layer {self.index} must return hidden states [batch, tokens, width], came {came}"
            )
        if self.kind != (output.device, output.dtype):
            self._prepare(output.device, output.dtype)
        opened = self.steering.current.opened  # none where the quick way steers every token
        mask = None if opened is None else opened.mask
        if mask is not None:
            mask = mask.to(output.device)
        return self._steered(self.function, output, mask)

    def _require_pass(self) -> None:
        steering = self.steering
        compiles = torch.compiler.is_compiling() or steering.traced.mask is not None
        if steering.current.opened is None and not compiles:
            raise RuntimeError(
                f"layer {self.index} of a steered model was called outside its decoder's forward, "
                "where its padding and positions are unknown; call the model, or detach"
            )

    def traced(self, hidden: Any) -> Any:
        """The same in plain torch operations, for compilers."""
        mask = self.steering.traced.mask
        if mask is not None:
            mask = mask.to(hidden.device)
        return self._steered(reference_steer.steer, hidden, mask)

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
    if shared is not None and not self.detached:
        output = self.function_of_layer(shared.layers[self.index], *args, **kwargs)
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
    return reference_steer.steer(
        hidden, table, shared.rows, shared.strengths, shared.mask, operation=operation
    )


class DecoderSlot(_Unmovable, Decoder):
    """The decoder's forward: places the tokens first, checks afterwards that every slot ran.

    `csrc/slot.cpp` runs the passes of which it can tell that all tokens are steered, or none.
    """

    def __init__(self, steering: Installed, decoder: nn.Module):
        original = decoder.forward
        super().__init__(original, self.run, self.after, decoder, steering.passes)
        functools.update_wrapper(self, original)
        self.steering, self.detached = steering, False
        self.names = tuple(inspect.signature(original).parameters)
        found = steering.decoder
        depth = len(found.decoder_path.split(".")) if found.decoder_path else 0
        self.list_names = tuple(found.layers_path.split(".")[depth:])

    def prepare(self) -> None:
        """Tell the quick way what is set."""
        steering, named = self.steering, self.steering.positions
        quick = isinstance(named, str) and steering.watch and not steering.regional
        code = POSITIONS.index(named) if quick else -1
        self.expect(code, steering.bank.sequences, len(steering.slots))
        self.off = steering.silent

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One forward pass, wherever the quick way does not serve."""
        inputs = dict(zip(self.names, args)) | kwargs if args else kwargs
        tokens = inputs.get("input_ids")
        if tokens is None:
            tokens = inputs.get("inputs_embeds")
        if is_traced(tokens):
            return self.traced(inputs, tokens, args, kwargs)
        opened = self._place(tokens, inputs)
        try:
            output = self.original(*args, **kwargs)
        finally:
            opened.close()
        return self.after(output, inputs, opened.serial, opened.ran)

    def traced(self, inputs: dict, tokens: Any, args: tuple, kwargs: dict) -> Any:
        """The same for compilers."""
        positions = self.steering.traced
        mask = positions.token_mask(inputs, tokens)
        if self.steering.tables is not None and torch.compiler.is_compiling():
            handing.now = self._shared(mask)
            output = self.original(*args, **kwargs)
            handing.now = None
            return output
        positions.mask = mask
        output = self.original(*args, **kwargs)
        positions.mask = None
        return output

    def _shared(self, mask: Tensor) -> SharedByLayers:
        """Look up for all layers what they read."""
        steering, own = self.steering, self.steering.alike
        rows, strengths = own.rows, own.strengths
        batch = mask.shape[0]
        if rows.shape[0] not in (1, batch):  # beams and samples of one sequence are neighbours
            rows = rows.repeat_interleave(batch // rows.shape[0], dim=0)
            strengths = strengths.repeat_interleave(batch // strengths.shape[0], dim=0)
        layers = steering.decoder.decoder
        for name in self.list_names:
            layers = getattr(layers, name)
        tables, operation, added = steering.tables, steering.operation, None
        if operation == "add" and mask.shape[0] == 1 and mask.shape[1] == 1:
            added = reference_steer.displacements(tables, rows, strengths, mask)
        return SharedByLayers(layers, tables, rows, strengths, mask, operation, added)

    def after(self, output: Any, inputs: dict[str, Any], serial: int, ran: int) -> Any:
        """The output of a pass in which every slot ran, and that is finite.

        Raises:
            RuntimeError: it is not so, with the layers.
        """
        steering = self.steering
        if ran < len(steering.slots):
            _require_ran([i for i, s in steering.slots.items() if s.serial != serial])
        if steering.watch:
            _require_finite(steering, output, inputs)
        return output

    def _place(self, tokens: Tensor, inputs: dict[str, Any]) -> OpenPass:
        """Open a pass that steers the tokens which the positions choose."""
        steering = self.steering
        here, shape = steering.current, (tokens.shape[0], tokens.shape[1])
        if steering.bank.sequences not in (1, shape[0]):
            steering.require_rows(shape[0], here.prompt)
        chosen = token_mask(
            steering.positions, here.prompt, inputs, shape, tokens.device, steering.prompt_length
        )
        if torch.is_grad_enabled():
            watch(steering, steering.checkpointed)
        return OpenPass(steering, chosen, shape)


def _traced_decoder(self: DecoderSlot, *args: Any, **kwargs: Any) -> Any:
    """The call of a `DecoderSlot` as a compiler sees it."""
    if self.detached:
        return self.original(*args, **kwargs)
    inputs = dict(zip(self.names, args)) | kwargs
    tokens = inputs.get("input_ids")
    if tokens is None:
        tokens = inputs.get("inputs_embeds")
    return self.traced(inputs, tokens, args, kwargs)


set_traced_call(DecoderSlot, _traced_decoder)


class FoldedDecoderSlot(_Unmovable):
    """The decoder's forward where the vectors are biases: looks at what came out, and no more.

    The first pass also looks whether the steered layers run at all.
    """

    def __init__(self, steering: Installed, original: Callable):
        functools.update_wrapper(self, original)
        self.steering, self.original = steering, original
        self.names = tuple(inspect.signature(original).parameters)
        self.off, self.first = False, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.off:
            return self.original(*args, **kwargs)
        if self.first:
            output = self._first(*args, **kwargs)
        else:
            output = self.original(*args, **kwargs)
        if not self.steering.watch:
            return output
        inputs = dict(zip(self.names, args)) | kwargs if args else kwargs
        _require_finite(self.steering, output, inputs)
        return output

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        layers, ran = self.steering.decoder.layers, set()
        hooks = [
            layers[i].register_forward_hook(lambda *unused, i=i: ran.add(i))
            for i in self.steering.folds
        ]
        try:
            output = self.original(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        _require_ran([i for i in self.steering.folds if i not in ran])
        self.first = False
        return output


def _require_ran(idle: list[int]) -> None:
    if idle:
        raise RuntimeError(
            f"layers {idle} carry a vector but did not run in this forward pass, so the "
            "output is not the steered one"
        )


def _require_finite(steering: Installed, output: Any, inputs: dict[str, Any]) -> None:
    hidden = getattr(output, "last_hidden_state", None)
    hidden = output[0] if hidden is None else hidden
    finite = all_finite(hidden)
    if finite is False:
        steering.diagnose(hidden, inputs)
    elif finite is None:
        steering.watched.add(hidden)


class OpenPass:
    """One forward pass of this thread, open for its slots until it is closed.

    Args:
        chosen: the tokens to steer, ``[batch, tokens]`` bool, or all of them, or none.
        shape: batch and tokens.
    """

    __slots__ = ("steering", "here", "outer", "chosen", "shape", "serial", "ran")

    def __init__(self, steering: Installed, chosen: Tensor | bool, shape: tuple[int, int]):
        self.steering, self.chosen, self.shape = steering, chosen, shape
        self.here = steering.current
        self.outer, self.here.opened = self.here.opened, self
        if chosen is True or chosen is False:
            self.serial = steering.passes.open(chosen, *shape, 0, 0, 0, 0, 0)
        else:
            device = chosen.device
            kind = {"cpu": 1, "cuda": 2}.get(device.type, 0)
            where = chosen.data_ptr(), *chosen.stride(), kind, device.index or 0
            self.serial = steering.passes.open(True, *shape, *where)
        if steering.regional:
            steering.traced.mask = self.mask

    @property
    def mask(self) -> Tensor | None:
        """As operations take it: ``None`` for every token."""
        if self.chosen is True:
            return None
        return torch.zeros(self.shape, dtype=torch.bool) if self.chosen is False else self.chosen

    def close(self) -> None:
        """Done, with what ran in it in ``ran``."""
        self.ran = self.steering.passes.close()
        self.here.opened = self.outer


class GenerateSlot(_Unmovable):
    """``generate``: remembers the prompt, so that later passes know which tokens are new."""

    def __init__(self, steering: Installed, original: Callable):
        functools.update_wrapper(self, original)
        self.steering, self.original = steering, original
        self.off = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.off:
            return self.original(*args, **kwargs)
        steering = self.steering
        with steering.generating(Prompt.of_generate(steering.model, args, kwargs)):
            output = self.original(*args, **kwargs)
        steering.watched.require_finite(steering.bank)
        return output
