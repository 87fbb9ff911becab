"""Whether code runs for its values, or is followed by somebody: a compiler, a tracer, a transform.

Whoever follows sees operations, and nothing of what is written through a pointer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy

# What the compiled decoder slot asks in each pass, see `csrc/slots/dlpack_view.h`.
RECORDERS = (torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack, vars(forward_ad))


def is_traced(value: Any) -> bool:
    """Whether a compiler or a tracer writes down what is done to ``value``."""
    return (
        torch.compiler.is_compiling()
        or isinstance(value, Proxy)
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


@contextmanager
def unrecorded() -> Iterator[None]:
    """Operations that belong to no graph: `torch.jit.trace` would keep them, and then find that the
    graph of its second run, without gradients, is another one."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run without their graphs, which would not see hooks that come, or keep those
    that go."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def is_dual() -> bool:
    """Whether tensors may carry tangents (forward-mode differentiation)."""
    return forward_ad._current_level >= 0


def is_transformed(value: Any) -> bool:
    """Whether a tensor may carry a tangent, or stands for others as `torch.func` wraps them."""
    return is_dual() or _is_wrapped(value)


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


def unwrapped(tensor: Any) -> Any:
    """The values behind what `torch.func` wrapped around them."""
    while _is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
