"""The compiled slot, or its stand-in in Python where the extension is not built.

Both call the original and then steer its output; they differ in what that costs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops.extension import _C
from ..support.tracing import RECORDERS, unrecorded, unwrapped

if _C is not None:
    Passes, Slot, Decoder = _C.Passes, _C.Slot, _C.DecoderSlot
    set_traced_call = _C.set_traced_call
    QUICK = _C.use_tensor_type(torch.Tensor)
    _C.use_recorders(*RECORDERS)
else:
    QUICK = False

    class _Thread(threading.local):
        serial, ran, steers, unsteered = 0, 0, False, False

    class Passes:  # type: ignore[no-redef]
        """The forward pass that is open in each thread."""

        def __init__(self) -> None:
            self.here, self.serial = _Thread(), 0

        def open(self, steers: bool, *unused: int) -> int:
            self.serial += 1
            self.here.serial, self.here.ran, self.here.steers = self.serial, 0, bool(steers)
            return self.serial

        def close(self) -> int:
            self.here.steers = False
            return self.here.ran

        def set_prompt(self, length: int, cache: int) -> None:
            """Only the quick way asks for it."""

        def tally(self) -> tuple[int, bool, int]:
            """No pass goes the quick way."""
            return 0, False, -1

    class Slot:  # type: ignore[no-redef]
        """Calls ``original``, then ``slowly`` on what it gave."""

        def __init__(self, original: Callable, slowly: Callable, passes: Passes):
            self.original, self.slowly, self.passes = original, slowly, passes
            self.off, self.serial = False, 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if self.off or self.passes.here.unsteered:
                return self.original(*args, **kwargs)
            self.slowly(None)
            output = self.original(*args, **kwargs)
            self.passes.here.ran += 1
            self.serial = self.passes.here.serial
            return self.slowly(output)

        def arm(self, *arguments: Any) -> None:
            """There is no quick way to arm."""

        disarm = arm

    class Decoder:  # type: ignore[no-redef]
        """Leaves every pass to ``slowly``."""

        def __init__(self, original: Callable, slowly: Callable, *given: Any):
            self.original, self.slowly, self.off = original, slowly, False
            self.passes: Passes = given[-1]

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if not self.off:
                return self.slowly(*args, **kwargs)
            here = self.passes.here  # unsteered to its end, whatever another thread changes
            outer, here.unsteered = here.unsteered, True
            try:
                return self.original(*args, **kwargs)
            finally:
                here.unsteered = outer

        def expect(self, *unused: int) -> None:
            """There is no quick way to prepare."""

    def set_traced_call(type_: type, function: Callable) -> None:
        """A compiler traces the slot's own Python."""


def all_finite(hidden: Tensor) -> bool | None:
    """Whether every entry is finite; ``None`` where telling would wait for a device."""
    hidden = unwrapped(hidden)
    known = _C.all_finite(hidden) if QUICK else None
    if known is None and isinstance(hidden, Tensor) and hidden.device.type == "cpu":
        with unrecorded():
            return bool(torch.isfinite(hidden).all())
    return known
