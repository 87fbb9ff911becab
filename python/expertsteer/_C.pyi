from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

with_cuda: bool

# A tensor of another type, shape, layout or device than the kernel assumes is a ValueError that
# names the argument. `bindings.cpp` says what each assumes; outputs are written in place.
def steer_cpu(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None,
    operation: int,
    gates: Tensor | None,
    thresholds: Tensor | None,
    inverse_norms: Tensor | None,
    threads: int,
) -> None: ...
def max_norm_distances_cpu(codes: Tensor, out: Tensor, first: int, threads: int) -> None: ...
def ksg_counts_cpu(
    x: Tensor, y: Tensor, n_x: Tensor, n_y: Tensor, k: int, variant: int, threads: int
) -> None: ...
def whiten_cpu(codes: Tensor, whitened: Tensor, threads: int) -> bool: ...
def log_determinants_cpu(product: Tensor, nats: Tensor, smallest: Tensor, threads: int) -> None: ...

# The passes of csrc/kernels/rfm.h over one matrix, in single or in double precision as it is.
def median_distance(gram: Tensor, threads: int) -> float: ...
def laplace(
    gram: Tensor, bandwidth: float, eps: float, kernel: Tensor, weights: Tensor | None, threads: int
) -> None: ...
def gradient_transform(
    weights: Tensor, alpha: Tensor, transform: Tensor, sums: Tensor, threads: int
) -> None: ...
def mirror_lower(matrix: Tensor, threads: int) -> None: ...

# csrc/slots/slot.cpp: what stands in the place of a layer's forward.
class Passes:
    def open(
        self, steers: bool, batch: int, tokens: int, mask: Tensor | Literal[False] | None, /
    ) -> int: ...
    def close(self) -> int: ...
    def set_prompt(self, length: int, cache: int, /) -> None: ...
    def tally(self) -> tuple[int, bool, int]: ...

class DecoderSlot:
    original: Callable
    off: bool
    def __init__(
        self, original: Callable, slowly: Callable, after: Callable, decoder: Any, passes: Passes, /
    ) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def expect(self, positions: int, rows_batch: int, slots: int, /) -> None: ...

class Slot:
    original: Callable
    off: bool
    armed: bool
    serial: int
    def __init__(self, original: Callable, slowly: Callable, passes: Passes, /) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def arm(
        self,
        dtype: int,
        operation: int,
        table: Tensor,
        inverse_norms: Tensor | None,
        rows: Tensor,
        strengths: Tensor,
        gates: Tensor | None,
        thresholds: Tensor | None,
        threads: int,
        /,
    ) -> None: ...
    def disarm(self) -> None: ...

def set_traced_call(type: type, function: Callable, /) -> None: ...
def use_tensor_type(type: type, /) -> bool: ...
def use_recorders(
    tracing_state: Callable[[], Any],
    dispatch_modes: Callable[[], int],
    forward_mode: dict[str, Any],
    /,
) -> None: ...
def all_finite(tensor: Any, /) -> bool | None: ...

# Present only where `with_cuda` is true.
def steer_cuda(
    hidden: Tensor,
    table: Tensor,
    rows: Tensor,
    strengths: Tensor,
    mask: Tensor | None,
    operation: int,
    gates: Tensor | None,
    thresholds: Tensor | None,
    inverse_norms: Tensor | None,
    stream: int,
) -> None: ...
