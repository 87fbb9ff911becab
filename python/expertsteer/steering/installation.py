"""What is replaced in a live model while it is steered, and how it is put back."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..folding.fold import Fold
from ..models.stand_ins import STEERING, put_back
from .bank import Bank
from .decoder_slot import DecoderSlot, FoldedDecoderSlot
from .layer_slot import LayerSlot
from .outer_slots import (
    CONTINUOUS,
    ContinuousSlot,
    GenerateSlot,
    OuterSlot,
    TrainSlot,
    prepares_inputs,
)
from .state import State


class Installed(State):
    """Slots or folds in a model.

    Whatever is to be put back is written down before it is changed, and every step back can be
    taken twice: who was interrupted takes them all again.

    Attributes:
        complete: all of it is in place.
    """

    def __init__(self, model: nn.Module, decoder: Any, bank: Bank, backend: str):
        super().__init__(model, decoder, bank, backend)
        self.complete, self._restore = False, list[tuple[nn.Module, str, Any, Any]]()

    def reserve(self) -> None:
        """Take the model; of several threads that ask at once one is given it.

        Raises:
            ValueError: it, or its decoder, is taken.
        """
        for module in self._reserved():
            if module.__dict__.setdefault(STEERING, self) is not self:
                raise ValueError(
                    "this model is already steered; leave the other attach first "
                    "(expertsteer.detach(model) where its object was lost), or attach several "
                    "vectors at once (a list of them)"
                )

    def release(self) -> None:
        """Leave the model to others."""
        for module in self._reserved():
            if module.__dict__.get(STEERING) is self:
                del module.__dict__[STEERING]

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

    def put_back(self) -> None:
        """Everything as it was; harmless when called twice."""
        self.complete = False
        for owner, name, previous, slot in reversed(self._restore):
            put_back(owner, name, previous, slot)
        for fold in self.folds.values():
            fold.remove()
        self._restore.clear()
        self.folds = {}  # a pass of another thread may be going through the old one

    def _replace(self, owner: nn.Module, name: str, slot: Any) -> None:
        # Instance attributes only: the class, and any other model, never notice.
        self._restore.append((owner, name, owner.__dict__.get(name), slot))
        owner.__dict__[name] = slot
