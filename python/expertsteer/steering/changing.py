"""How a live steering is changed: one change at a time, and all of it or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .bank import Bank
from .checkpointing import unwatch
from .checks import choose_mode
from .given_positions import Positions
from .installation import Installed


class Changeable(Installed):
    """What is installed, with its beginning, its changes and its end.

    Whoever is interrupted, by Ctrl-C say, leaves the model as it was, or a steering that `detach`
    finishes when it is called again.
    """

    def __init__(self, model: nn.Module, decoder: Any, bank: Bank, backend: str):
        super().__init__(model, decoder, bank, backend)
        self._state = "new"
        self._changes = threading.RLock()  # one at a time

    @property
    def attached(self) -> bool:
        return self._state == "attached"

    def _start(
        self, strength: float, positions: Positions, mode: str, decoder_layers: str | None
    ) -> None:
        try:
            self.reserve()
            self.mode = choose_mode(self, positions, mode, decoder_layers)
            self.fixed = mode != "auto"
            self.bank.fill(self.bank.experts, strength)
            self.positions = positions
            self.traced.set_positions(positions)
            self.install()
            self._state = "attached"
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Put back everything that was replaced; harmless when called twice.

        Interrupted, it is finished by another call, of this method or of `expertsteer.detach`.
        """
        with self._changes:
            self._state = "detached"
            self.put_back()
            unwatch(self, self.checkpointed)
            self.release()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """All of a change or nothing of it, whatever refuses or interrupts it."""
        with self._changes:
            self._require_attached()
            before = self.bank.snapshot(), self.positions, self.prompt_length, self.mode
            try:
                yield
            except BaseException:
                self._go_back(*before)
                raise

    def _go_back(self, bank: tuple, positions: Positions, length: Any, mode: str) -> None:
        if self._state == "detached":
            return self.detach()
        try:
            self.bank.restore(bank)
            self.positions = positions
            self.traced.set_positions(positions)
            if self.prompt_length is not length:
                self.prompt_length = length
                self.traced.set_prompt(length)
            if self.mode != mode or not self.complete:
                self._install_again(mode)
            self.fill()
        except BaseException:
            self.detach()
            raise

    def _refill(self, slots: bool) -> None:
        """Hand on what the bank holds, to slots where only they serve.

        That is for good: going back and forth would compile again each time.
        """
        if slots and self.mode == "fold":
            self._install_again("slot")
        else:
            self.fill()

    def _install_again(self, mode: str) -> None:
        self.put_back()
        self.mode = mode
        self.install()

    def leave_fold(self, reason: str) -> None:
        """Go over to slots in a forward pass that biases would not steer.

        Raises:
            RuntimeError: ``mode="fold"`` was asked for.
        """
        if self.fixed:
            raise RuntimeError(
                f'mode="fold" no longer steers this model: {reason}; attach with mode="slot" or '
                '"auto", which goes over to slots by itself'
            )
        with self._changes:
            if self.attached:  # else another thread has just put the model back
                with self._changing():
                    self._refill(slots=True)

    def _require_attached(self) -> None:
        if self._state == "detached":
            raise RuntimeError("this steering was detached; attach again to steer")
