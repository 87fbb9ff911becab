"""Whether code runs for its values, or to be written down by a compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy


def is_traced(value: Any) -> bool:
    """Whether a compiler or a tracer follows what is done to ``value``."""
    return torch.compiler.is_compiling() or isinstance(value, Proxy)
