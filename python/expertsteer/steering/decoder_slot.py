"""What stands in for the decoder's forward: opens each pass for the slots of its layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.caches import find_cache
from ..models.decoder import config_depth
from ..models.stand_ins import MethodSlot, Unmovable
from ..ops.steering.reference import displacements
from ..support.tracing import is_traced
from .checkpointing import watch
from .extension import Decoder, all_finite, set_traced_call
from .finiteness import diagnose, require_length
from .given_positions import POSITIONS, require_copies
from .positions import token_mask
from .state import OpenPass, State
from .traced import SharedByLayers, handing


class DecoderSlot(Unmovable, Decoder):
    """The decoder's forward: places the tokens first, checks afterwards that every slot ran.

    `csrc/slots/slot.cpp` runs the passes of which it can tell that all tokens are steered, or none.
    """

    def __init__(self, steering: State, decoder: nn.Module):
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
        quick = quick and not steering.bank.amplifies
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
            try:
                return self.traced(inputs, tokens, args, kwargs)
            finally:
                self.steering.traced.mask = None
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
        layers = [layers[i] for i, carries in enumerate(steering.carrying) if carries == "1"]
        tables, operation, added = steering.tables, steering.operation, None
        if operation == "add" and mask.shape[0] == 1 and mask.shape[1] == 1:
            added = displacements(tables, rows, strengths, mask)
        function = steering.layer_function
        return SharedByLayers(layers, function, tables, rows, strengths, mask, operation, added)

    def after(self, output: Any, inputs: dict[str, Any], serial: int, ran: int) -> Any:
        """The output of a pass in which every slot ran, and that is finite.

        Raises:
            RuntimeError: it is not so, with the layers.
        """
        steering = self.steering
        if ran < len(steering.slots) and not self.off:  # by another thread meanwhile
            _require_ran(steering, [i for i, s in steering.slots.items() if s.serial != serial])
        if steering.watch:
            _require_finite(steering, output, inputs)
        return output

    def _place(self, tokens: Tensor, inputs: dict[str, Any]) -> OpenPass:
        """Open a pass that steers the tokens which the positions choose."""
        steering = self.steering
        here, shape = steering.current, (tokens.shape[0], tokens.shape[1])
        prompt = here.prompt
        require_copies("set_rows was given", steering.bank.sequences, shape[0], prompt.batch)
        _require_one_batch(steering, inputs)
        steering.count_passes(prompt)
        chosen = token_mask(
            steering.positions,
            prompt,
            inputs,
            shape,
            tokens.device,
            steering.prompt_length,
            outer=here.outer,
            alone=steering.alone,
        )
        prompt.mark(chosen)
        steering.tell_place(prompt)
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


class FoldedDecoderSlot(MethodSlot):
    """The decoder's forward where the vectors are biases: looks at what came out, and no more.

    The first pass also looks whether the steered layers run at all.
    """

    def __init__(self, steering: State, original: Callable):
        super().__init__(steering, original)
        self.first = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.off:
            return self.original(*args, **kwargs)
        if reason := self.steering.why_fold_no_longer():
            self.steering.leave_fold(reason)
            return self.steering.decoder.decoder.forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        here = self.steering.current
        here.prompt.missed = here.prompt.chose = True
        outer, here.folded = here.folded, True
        try:
            output = (self._first if self.first else self.original)(*args, **kwargs)
        finally:
            here.folded = outer
        if not self.steering.watch:
            return output
        _require_finite(self.steering, output, self.inputs(args, kwargs))
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
        self.first = bool(
            _require_ran(self.steering, [i for i in self.steering.folds if i not in ran])
        )
        return output


def _require_ran(steering: State, idle: list[int]) -> list[int]:
    """Nothing idle but what a draft leaves out: its tokens are checked by a pass of all layers.

    Raises:
        RuntimeError: other layers than those.
    """
    if idle and not (steering.current.prompt.nested and min(idle) >= _depth_now(steering)):
        raise RuntimeError(
            f"layers {idle} carry a vector but did not run in this forward pass, so the "
            "output is not the steered one"
        )
    return idle


def _depth_now(steering: State) -> int:
    """How many layers run: drafts that exit early set it in the configuration for their time."""
    depth = config_depth(steering.decoder.decoder)
    return len(steering.decoder.layers) if depth is None else depth


def _require_one_batch(steering: State, inputs: Mapping[str, Any]) -> None:
    """Requests that a scheduler packs into one row have prompts that no pass shows.

    Raises:
        ValueError: positions or rows need to know them.
    """
    packed = inputs.get("cu_seq_lens_q")
    if packed is None or find_cache(inputs) is None or steering.why_not_everywhere() is None:
        return
    raise ValueError(
        f"this pass packs several requests over a paged cache; {steering.why_not_everywhere()}"
    )


def _require_finite(steering: State, output: Any, inputs: dict[str, Any]) -> None:
    hidden = getattr(output, "last_hidden_state", None)
    hidden = output[0] if hidden is None else hidden
    finite = all_finite(hidden)
    if finite is False:
        diagnose(steering, hidden, inputs)
    elif finite is None:
        steering.watched.add(hidden)
    elif steering.bank.amplifies:
        require_length(steering, hidden, inputs)
