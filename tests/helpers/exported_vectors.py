"""Vectors that are written for other programs, and into the weights of `steered_models.llama`."""

import torch

from helpers.folded_models import vectors_for
from helpers.steered_models import llama, vectors

TARGET = {"architecture": "LlamaForCausalLM", "num_layers": 8}
MADE = vectors(layers=(1, 3, 7), width=33, target=TARGET, note="größer")
FIRST = vectors(layers=(0, 2), width=33)

WRITTEN = vectors_for(llama(), layers=(1, 3))
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(5))
