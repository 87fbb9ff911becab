"""The model that most tests of tasks are put to."""

import pytest

from helpers.families import build
from helpers.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return build("llama", layers=2).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()
