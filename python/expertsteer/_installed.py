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
from ._diagnosis import Watched, diagnose
from ._entry import Passes, Uncopied, put_back
from ._folding import Fold, TrainSlot
from ._given_positions import Positions
from ._outer_slots import CONTINUOUS, ContinuousSlot, GenerateSlot, OuterSlot, prepares_inputs
from ._positions import Outer
from ._prompt import Prompt
from ._slots import LayerSlot
from ._traced import TracedPositions


class _Thread(threading.local):
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


_STEERING = "_expertsteer_steering"  # under which a steered module knows its steering


class Installed(Uncopied):
    """Slots or folds in a model, and what they share.

    Whatever is to be put back is written down before it is changed, and every step back can be
    taken twice: who was interrupted takes them all again.

    Attributes:
        bank: the vectors; slots, folds: by layer; mode: ``"fold"`` or ``"slot"``, chosen once the
            model is reserved; complete: all of it is in place.
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

    def __init__(self, model: nn.Module, decoder: Any, bank: Bank, backend: str):
        self.model, self.decoder, self.bank, self.backend = model, decoder, bank, backend
        self.operation, self.mode = bank.operation, "slot"
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
        self.complete, self._restore = False, list[tuple[nn.Module, str, Any, Any]]()
        self.positions: Positions = "all"
        self.prompt_length: int | Tensor | None = None

    def reserve(self) -> None:
        """Take the model; of several threads that ask at once one is given it.

        Raises:
            ValueError: it, or its decoder, is taken.
        """
        for module in self._reserved():
            if module.__dict__.setdefault(_STEERING, self) is not self:
                raise ValueError(
                    "this model is already steered; leave the other attach first "
                    "(expertsteer.detach(model) where its object was lost), or attach several "
                    "vectors at once (a list of them)"
                )

    def release(self) -> None:
        """Leave the model to others."""
        for module in self._reserved():
            if module.__dict__.get(_STEERING) is self:
                del module.__dict__[_STEERING]

    def _reserved(self) -> tuple[nn.Module, nn.Module]:
        return self.decoder.decoder, self.model

    def install(self) -> None:
        if self.mode == "fold":
            self._install_folds()
        else:
            self._install_slots()
        self.fill()
        self.complete = True

    def _install_folds(self) -> None:
        for layer in self.bank.layers:
            fold = Fold(self.model, layer, self.decoder.layers_path)
            self.folds[layer] = fold  # known before it changes anything
            fold.install()
        decoder = self.decoder.decoder
        self._replace(decoder, "forward", FoldedDecoderSlot(self, decoder.forward))
        self._replace(decoder, "train", TrainSlot(self, decoder.train))
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

    def fill(self) -> None:
        """What follows a change of the bank's contents."""
        self.silent = self.bank.silent
        for layer, fold in self.folds.items():
            fold.write(self.bank.displacement(layer))
        for slot in self.slots.values():
            slot.off = self.silent
            slot.rearm()
        if self.placing is not None:
            self.placing.prepare()

    def why_fold_no_longer(self) -> str | None:
        """Why biases do not steer the next pass, though they did so far; ``None`` where they do."""
        for fold in self.folds.values():
            if reason := fold.why_no_longer():
                return reason
        return None

    def put_back(self) -> None:
        """Everything as it was; harmless when called twice."""
        self.complete = False
        for owner, name, previous, slot in reversed(self._restore):
            put_back(owner, name, previous, slot)
        for fold in self.folds.values():
            fold.remove()
        self._restore.clear()
        self.folds = {}  # a pass of another thread may be going through the old one

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

    def diagnose(self, hidden: Tensor, inputs: Mapping[str, Any]) -> None:
        """Called when states are not finite; raises when steering is what made them so."""
        diagnose(self, hidden, inputs)

    def _replace(self, owner: nn.Module, name: str, slot: Any) -> None:
        # Instance attributes only: the class, and any other model, never notice.
        self._restore.append((owner, name, owner.__dict__.get(name), slot))
        owner.__dict__[name] = slot


def steerings_of(model: nn.Module) -> list[Installed]:
    """What steers a model, or any part of it."""
    found = (module.__dict__.get(_STEERING) for module in model.modules())
    return list({id(one): one for one in found if one is not None}.values())
