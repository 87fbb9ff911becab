"""What is replaced in a live model while it is steered, and how it is put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._bank import Bank
from ._decoder_slots import DecoderSlot, FoldedDecoderSlot, OpenPass
from ._diagnosis import Watched
from ._entry import Passes
from ._folding import Fold
from ._given_positions import Positions
from ._outer_slots import CONTINUOUS, ContinuousSlot, GenerateSlot, OuterSlot, prepares_inputs
from ._positions import Outer
from ._prompt import Prompt
from ._slots import LayerSlot
from ._traced import TracedPositions


class _Thread(threading.local):
    """What one thread's running ``generate`` and forward pass have told."""

    def __init__(self) -> None:
        self.prompt = Prompt()
        self.silent_start = False  # nothing was steered when the running ``generate`` began
        self.outer: Outer | None = None
        self.opened: OpenPass | None = None
        self.told: tuple[int, int] | None = None


class Installed:
    """Slots or folds in a model, and what they share.

    Attributes:
        bank: the vectors; slots, folds: by layer; mode: ``"fold"`` or ``"slot"``.
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
    """

    def __init__(self, model: nn.Module, decoder: Any, bank: Bank, backend: str, mode: str):
        self.model, self.decoder, self.bank, self.backend = model, decoder, bank, backend
        self.operation, self.mode = bank.operation, mode
        self.slots: dict[int, LayerSlot] = {}
        self.folds: dict[int, Fold] = {}
        self.placing: DecoderSlot | None = None
        self.passes, self.current = Passes(), _Thread()
        device = next((p.device for p in model.parameters() if p.device.type != "meta"), "cpu")
        self.traced = TracedPositions(torch.device(device))
        self.silent, self.watch, self.regional = True, True, False
        self.tables: Tensor | None = None
        self.watched = Watched()
        can = getattr(model, "can_generate", None)
        self.alone = not hasattr(model, "generate") or (callable(can) and not can())
        self.checkpointed = [decoder.decoder, *decoder.layers]
        self._restore: list[tuple[nn.Module, str, Any, Any]] = []
        self.positions: Positions = "all"
        self.prompt_length: int | Tensor | None = None

    def install(self) -> None:
        if self.mode == "fold":
            self._install_folds()
        else:
            self._install_slots()
        self.filled()

    def _install_folds(self) -> None:
        for layer in self.bank.layers:
            self.folds[layer] = Fold(self.model, layer, self.decoder.layers_path)
        decoder = self.decoder.decoder
        self._replace(decoder, "forward", FoldedDecoderSlot(self, decoder.forward))
        self._replace_generate()

    def _install_slots(self) -> None:
        layers, decoder = self.decoder.layers, self.decoder.decoder
        self.slots = {i: LayerSlot(self, i, layers[i], self.backend) for i in self.bank.layers}
        for slot in self.slots.values():
            self._replace(slot.layer, "forward", slot)
        self.placing = DecoderSlot(self, decoder)
        self._replace(decoder, "forward", self.placing)
        if self.model is not decoder and prepares_inputs(self.model):
            self._replace(self.model, "forward", OuterSlot(self, self.model.forward))
        self._replace_generate()
        compiled = (getattr(layer, "_compiled_call_impl", None) for layer in layers)
        self.regional = any(call is not None for call in compiled)
        self._share()

    def _share(self) -> None:
        """What compiled passes look up once, where their layers need nothing else of their own."""
        slots = list(self.slots.values())
        self.tables, self.alike = None, slots[0].buffers
        functions = {slot.function_of_layer for slot in slots}
        self.layer_function = next(iter(functions)) if len(functions) == 1 else None
        self.carrying = "".join("01"[i in self.slots] for i in range(len(self.decoder.layers)))
        alike = len({slot.kind for slot in slots}) == 1
        needs = any(slot.needs_norms for slot in slots) or None in functions or self.regional
        if alike and not needs:
            self.tables = self.bank.stack([slot.buffers for slot in slots])

    def _replace_generate(self) -> None:
        if hasattr(self.model, "generate"):
            self._replace(self.model, "generate", GenerateSlot(self, self.model.generate))
        for name in CONTINUOUS:
            if hasattr(self.model, name):
                self._replace(self.model, name, ContinuousSlot(self, getattr(self.model, name)))

    def filled(self, before: tuple | None = None) -> None:
        """What follows a change of the bank's contents; a refusal goes back to a snapshot."""
        try:
            self._fill()
        except ValueError:
            if before is not None:
                self.bank.restore(before)
                self._fill()
            raise

    def _fill(self) -> None:
        self.silent = self.bank.silent
        for layer, fold in self.folds.items():
            fold.write(self.bank.displacement(layer))
        for slot in self.slots.values():
            slot.off = self.silent
            slot.rearm()
        if self.placing is not None:
            self.placing.prepare()

    def put_back(self) -> None:
        """Everything as it was."""
        for owner, name, previous, slot in reversed(self._restore):
            _put_back(owner, name, previous, slot)
        self._restore.clear()
        for fold in self.folds.values():
            fold.remove()
        self.folds.clear()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """The model as it is without vectors, slots and biases in place."""
        slots = [*self.slots.values(), *([self.placing] if self.placing else [])]
        was = self.silent, [slot.off for slot in slots]
        self.silent = True
        for slot in slots:
            slot.off = True
        for fold in self.folds.values():
            fold.write(torch.zeros(self.bank.width, dtype=torch.float32, device="cpu"))
        try:
            yield
        finally:
            self.silent = was[0]
            for slot, off in zip(slots, was[1]):
                slot.off = off
            for layer, fold in self.folds.items():
                fold.write(self.bank.displacement(layer))

    @contextmanager
    def generating(self, prompt: Prompt) -> Iterator[None]:
        """One ``generate`` of this thread; compiled passes know one at a time."""
        here = self.current
        outer, silent_start = here.prompt, here.silent_start
        self.count_passes(outer)
        prompt.nested = outer.length is not None
        here.prompt, here.silent_start = prompt, self.silent
        self._tell_prompt(prompt)
        try:
            yield
        finally:
            self.count_passes(prompt)
            here.prompt, here.silent_start = outer, silent_start
            self._tell_prompt(outer)

    def count_passes(self, prompt: Prompt) -> None:
        """Add the passes that went the quick way, and whether they steered."""
        passes, chose = self.passes.tally()
        prompt.passes += passes
        prompt.chose = prompt.chose or chose

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

    def diagnose(self, hidden: Tensor, inputs: Mapping[str, Any]) -> None:
        """Called when states are not finite; raises when steering is what made them so."""
        from ._diagnosis import diagnose

        diagnose(self, hidden, inputs)

    def _replace(self, owner: nn.Module, name: str, slot: Any) -> None:
        # Instance attributes only: the class, and any other model, never notice.
        self._restore.append((owner, name, owner.__dict__.get(name), slot))
        owner.__dict__[name] = slot


def _put_back(owner: nn.Module, name: str, previous: Any, slot: Any) -> None:
    """Undo a replacement, also where somebody else has wrapped the slot since."""
    slot.retire()
    if owner.__dict__.get(name) is slot:
        if previous is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = previous
    elif owner.__dict__.get(f"_old_{name}") is slot:  # accelerate's hooks, put on after ours
        owner.__dict__[f"_old_{name}"] = slot.original
