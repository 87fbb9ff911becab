"""The models that most tests of steering run on, and the two ways to carry a vector."""

import pytest

from helpers.steered_models import gpt2, llama


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param()


@pytest.fixture(params=["fold", "slot"])
def mode(request):
    return request.param
