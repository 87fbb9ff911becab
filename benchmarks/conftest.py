"""What the benchmarks share under pytest."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Threads would wait for one another where the work is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
