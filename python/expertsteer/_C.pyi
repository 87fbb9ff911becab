from collections.abc import Callable
from typing import Any

with_cuda: bool

def steer_add_cpu(
    hidden: int,
    dtype: int,
    batch: int,
    tokens: int,
    width: int,
    batch_stride: int,
    token_stride: int,
    delta: int,
    mask: int,
    mask_batch_stride: int,
    mask_token_stride: int,
) -> None: ...

class Steer:
    """One call of `steer_cpu` or `steer_cuda`: the struct of csrc/steer.h.

    A pair is a pointer and a stride in elements: between the rows of the table, else between
    sequences (0 where all share one entry).
    """

    def __init__(
        self,
        hidden: int,
        dtype: int,
        shape: tuple[int, int, int],
        strides: tuple[int, int, int],
        operation: int,
        vectors: int,
        table: tuple[int, int],
        inverse_norms: int,
        rows: tuple[int, int],
        strengths: tuple[int, int],
        mask: int,
        mask_strides: tuple[int, int],
        gates: tuple[int, int],
        thresholds: tuple[int, int],
        threads: int,
    ) -> None: ...

def steer_cpu(steer: Steer) -> None: ...
def max_norm_distances_cpu(
    codes: int,
    out: int,
    layers: int,
    components: int,
    n: int,
    first: int,
    rows: int,
    threads: int,
) -> None: ...
def ksg_counts_cpu(
    x: int,
    y: int,
    n_x: int,
    n_y: int,
    layers_x: int,
    layers_y: int,
    rows: int,
    n: int,
    k: int,
    variant: int,
    threads: int,
) -> None: ...
def whiten_cpu(codes: int, layers: int, n: int, r: int, whitened: int, threads: int) -> bool: ...
def log_determinants_cpu(
    product: int,
    rows: int,
    columns: int,
    r: int,
    s: int,
    nats: int,
    smallest: int,
    threads: int,
) -> None: ...

# The passes of csrc/rfm.h, each in single and in double precision.
def median_distance_float32(gram: int, n: int, threads: int) -> float: ...
def median_distance_float64(gram: int, n: int, threads: int) -> float: ...
def laplace_float32(
    gram: int, n: int, bandwidth: float, eps: float, kernel: int, weights: int, threads: int
) -> None: ...
def laplace_float64(
    gram: int, n: int, bandwidth: float, eps: float, kernel: int, weights: int, threads: int
) -> None: ...
def gradient_transform_float32(
    weights: int, alpha: int, n: int, transform: int, sums: int, threads: int
) -> None: ...
def gradient_transform_float64(
    weights: int, alpha: int, n: int, transform: int, sums: int, threads: int
) -> None: ...
def mirror_lower_float32(matrix: int, n: int, threads: int) -> None: ...
def mirror_lower_float64(matrix: int, n: int, threads: int) -> None: ...

# csrc/slot.cpp: what stands in the place of a layer's forward.
class Passes:
    def open(
        self,
        steers: bool,
        batch: int,
        tokens: int,
        mask: int,
        mask_batch_stride: int,
        mask_token_stride: int,
        mask_device_type: int,
        mask_device_id: int,
        /,
    ) -> int: ...
    def close(self) -> int: ...
    def set_prompt(self, length: int, cache: int, /) -> None: ...
    def tally(self) -> tuple[int, bool]: ...

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
    def arm(self, *numbers_and_memory: Any) -> None: ...
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
def steer_add_cuda(
    hidden: int,
    dtype: int,
    batch: int,
    tokens: int,
    width: int,
    batch_stride: int,
    token_stride: int,
    delta: int,
    mask: int,
    mask_batch_stride: int,
    mask_token_stride: int,
    stream: int,
) -> None: ...
def steer_cuda(steer: Steer, stream: int) -> None: ...
