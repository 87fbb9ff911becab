"""Where an operation runs: every device, and every backend that serves it there."""

import pytest
import torch

from expertsteer.ops import extension


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["reference", "native"])
def backend(request, device):
    reason = extension.why_not(device, torch.float32) if request.param == "native" else None
    if reason and device.type == "cuda":
        pytest.skip(reason)
    return request.param
