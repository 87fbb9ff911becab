"""What the stand-ins of a steered model share: its vectors, its positions, its open passes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.fold import Fold
from ..models.stand_ins import Uncopied
from ..support.tracing import is_transformed
from .bank import Bank
from .extension import Passes
from .given_positions import Positions
from .positions import Outer
from .prompt import Prompt
from .traced import TracedPositions
from .watched import Watched


class OpenPass:
    """One forward pass of this thread, open for its slots until it is closed.

    Args:
        chosen: the tokens to steer, ``[batch, tokens]`` bool, or all of them, or none.
        shape: batch and tokens.
    """

    __slots__ = ("steering", "here", "outer", "chosen", "shape", "serial", "ran")

    def __init__(self, steering: State, chosen: Tensor | bool, shape: tuple[int, int]):
        self.steering, self.chosen, self.shape = steering, chosen, shape
        self.here = steering.current
        self.outer, self.here.opened = self.here.opened, self
        mask = chosen if isinstance(chosen, Tensor) else None
        if is_transformed(chosen):  # it has no memory to read
            mask = False
        self.serial = steering.passes.open(chosen is not False, *shape, mask)
        if steering.regional:
            steering.traced.mask = self.mask

    @property
    def mask(self) -> Tensor | None:
        """As operations take it: ``None`` for every token."""
        if self.chosen is True:
            return None
        return (
            torch.zeros(self.shape, dtype=torch.bool, device="cpu")
            if self.chosen is False
            else self.chosen
        )

    def close(self) -> None:
        """Done, with what ran in it in ``ran``."""
        self.ran = self.steering.passes.close()
        self.here.opened = self.outer


class PerThread(threading.local):
    """What one thread's running ``generate`` and forward pass have told.

    Attributes:
        folded: the pass began while the vectors were biases; slots that take over before it has
            ended steer the rest of its layers as the biases did, at all positions.
    """

    def __init__(self) -> None:
        self.folded = False
        self.prompt = Prompt()
        self.outer: Outer | None = None
        self.opened: OpenPass | None = None
        self.told: tuple[int, int] | None = None


class State(Uncopied):
    """What is set of a steering, and where its passes stand; read by every stand-in.

    Attributes:
        bank: the vectors; slots, folds: by layer; mode: ``"fold"`` or ``"slot"``, chosen once the
            model is reserved.
        passes, current: the forward pass of each thread, for the slots in C and in Python.
        traced: positions as compiled passes read them.
        silent: nothing can change, so that slots do not run at all.
        watch: states are looked at for what is not finite.
        regional: layers were compiled one by one.
        alone: no ``generate`` of the model's own is there, as in a part of another model.
        tables: those of all slots as compiled passes read them, ``[L, R, D]``; ``None`` where each
            slot reads its own.
        alike: buffers of any slot, for what all of them share; layer_function: the forward of the
            steered layers where it is one for all; carrying: "1" or "0" for each layer of the
            model, one string because a graph checks a string with one comparison.
        fixed: the mode was asked for, so that nothing takes its place.
    """

    def __init__(self, model: nn.Module, decoder: Any, bank: Bank, backend: str):
        self.model, self.decoder, self.bank, self.backend = model, decoder, bank, backend
        self.operation, self.mode = bank.operation, "slot"
        self.slots: dict[int, Any] = {}
        self.folds: dict[int, Fold] = {}
        self.placing: Any = None
        self.passes, self.current = Passes(), PerThread()
        device = next((p.device for p in model.parameters() if p.device.type != "meta"), "cpu")
        self.traced = TracedPositions(torch.device(device))
        self.silent, self.watch, self.regional = True, True, False
        self.tables: Tensor | None = None
        self.watched = Watched()
        can = getattr(model, "can_generate", None)
        self.alone = not hasattr(model, "generate") or (callable(can) and not can())
        self.checkpointed = [decoder.decoder, *decoder.layers]
        self.positions: Positions = "all"
        self.prompt_length: int | Tensor | None = None
        self.fixed = True

    def why_fold_no_longer(self) -> str | None:
        """Why biases do not steer the next pass, though they did so far; ``None`` where they do."""
        for fold in self.folds.values():
            if reason := fold.why_no_longer():
                return reason
        return None

    def leave_fold(self, reason: str) -> None:
        """Go over to slots in a forward pass that biases would not steer."""
        raise NotImplementedError

    @contextmanager
    def muted(self) -> Iterator[None]:
        """The model as it is without vectors, slots and biases in place."""
        slots = [*self.slots.values(), *([self.placing] if self.placing else [])]
        was = self.silent, [slot.off for slot in slots]
        self.silent = True
        for slot in slots:
            slot.off = True
        folds = self.folds
        for fold in folds.values():
            fold.write(torch.zeros(self.bank.width, dtype=torch.float32, device="cpu"))
        try:
            yield
        finally:
            self.silent = was[0]
            for slot, off in zip(slots, was[1]):
                slot.off = off or slot.detached  # by another thread meanwhile
            if self.folds is folds:
                for layer, fold in folds.items():
                    fold.write(self.bank.displacement(layer))

    @contextmanager
    def generating(self, prompt: Prompt) -> Iterator[None]:
        """One ``generate`` of this thread; compiled passes know one at a time."""
        here = self.current
        outer = here.prompt
        self.count_passes(outer)
        prompt.nested = prompt.nested or outer.length is not None
        prompt.missed = self.silent
        here.prompt = prompt
        self._tell_prompt(prompt)
        try:
            yield
        finally:
            self.count_passes(prompt)
            here.prompt = outer
            self._tell_prompt(outer)

    def count_passes(self, prompt: Prompt) -> None:
        """Add the passes that went the quick way, and whether they steered."""
        prompt.went_by(*self.passes.tally())

    def tell_place(self, prompt: Prompt) -> None:
        """Where the prompt ends, to all who place later passes by it, once passes have shown it."""
        if prompt.length is None:
            return
        here, told = self.current, prompt.main
        if here.told != told:
            here.told = told
            self.passes.set_prompt(*told)
            self.traced.set_prompt(told[0], prompt.mask, prompt.start)

    def _tell_prompt(self, prompt: Prompt) -> None:
        self.current.told = None
        self.passes.set_prompt(-1, 0)
        known = self.prompt_length if prompt.length is None else prompt.length
        self.traced.set_prompt(known, prompt.mask, prompt.start)
        self.traced.batch = prompt.batch
        if prompt.tracks:
            self.tell_place(prompt)

    def why_not_everywhere(self) -> str | None:
        """Why passes that serve several requests in one row cannot be steered, if so."""
        if isinstance(self.positions, str) and self.positions == "all" and self.bank.sequences == 1:
            return None
        return (
            "continuous batching packs requests of other prompts into one row, so nothing but "
            'positions="all" without set_rows can be served there; set that, or use generate'
        )
