"""What every test shares: no network, few threads, reproducible random numbers."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tensors here are small: threads that wait for one another cost more than they give, most of
# all beside the other processes of the suite. Programs that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from expertsteer import HiddenStates
from helpers.families import build

torch.set_num_threads(1)

STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260K"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def stories() -> Path:
    """A real pretrained checkpoint, where the workplace has one."""
    if not STORIES.is_dir():
        pytest.skip("the pretrained checkpoint stories260K is not on this machine")
    return STORIES


@pytest.fixture
def model():
    """A small Llama, new for each test."""
    return build("llama")


@pytest.fixture
def make_states():
    """Paired captures of a shared latent cause, ``make_states(layers, examples, width, seed)``."""

    def make(layers=3, examples=80, width=12, seed=0, dtype=torch.float64, latent=4):
        cause = torch.randn(examples, latent, generator=torch.Generator().manual_seed(99))
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(layers, latent, width, generator=generator)
        noise = torch.randn(layers, examples, width, generator=generator)
        states = (cause @ mixing + 0.3 * noise + torch.randn(width, generator=generator)).to(dtype)
        labels = (cause[:, 0] > 0).long()
        model = {"name": f"model-{seed}", "num_layers": layers, "hidden_size": width}
        return HiddenStates(states, labels, keys=torch.arange(examples), model=model)

    return make


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Compile for real, with the settings that triton warns about when they are not stated."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    return tmp_path
