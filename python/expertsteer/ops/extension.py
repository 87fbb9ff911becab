"""What the compiled extension is given; the only import of it.

The extension reads tensors without torch's headers, so one wheel serves every torch release. It
refuses tensors of another type, shape or layout than its kernels assume.
"""

from __future__ import annotations

import torch

try:
    from .. import _C
except ImportError as error:  # a source tree without a build; the reference path serves
    _C = None
    MISSING = f"the compiled extension expertsteer._C is not available ({error}); pip install ."
else:
    MISSING = None
    _C.use_tensor_type(torch.Tensor)  # from torch 2.10 on, reads them without Python attributes

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of that kind, or ``None`` when it can."""
    if _C is None:
        return MISSING
    if dtype not in DTYPES:
        return f"dtype {dtype} is not among {[str(d) for d in DTYPES]}"
    if device.type == "cuda":
        return None if _C.with_cuda else "the extension was built without CUDA (EXPERTSTEER_CUDA)"
    return None if device.type == "cpu" else f"device {device.type} is neither cpu nor cuda"


def why_not_on_cpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """As `why_not`, for what is compiled for a CPU in single and in double precision."""
    if MISSING is not None:
        return MISSING
    if device.type != "cpu":
        return f"device {device.type} is not a cpu"
    single_or_double = dtype in (torch.float32, torch.float64)
    return None if single_or_double else f"dtype {dtype} is neither torch.float32 nor torch.float64"
