"""What methods are compared on: neutral texts, a budget, a score that knows what it was asked."""

import torch

from expertsteer.models.scoring import choice_probabilities
from helpers.tiny_tokenizer import sentence

NEUTRAL = [sentence(length, seed=length) for length in (4, 7, 5, 9)]
BUDGET = 0.05
QUESTIONS = {
    "validation": [sentence(4, seed=s) for s in range(20, 32)],
    "test": [sentence(4, seed=s) for s in range(40, 54)],
}
CHOICES = [" w4", " w7", " w9"]


class Scorer:
    """How often the first choice is on top, and its probability; remembers what was asked."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.asked = model, tokenizer, []

    def __call__(self, split, prompt):
        self.asked.append((split, prompt))
        prompts = [prompt + question for question in QUESTIONS[split]]
        belief = choice_probabilities(self.model, self.tokenizer, prompts, CHOICES)
        return torch.stack([(belief.argmax(dim=1) == 0).double(), belief[:, 0]], dim=1)
