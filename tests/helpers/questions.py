"""Rows of multiple-choice questions in the words of `tiny_tokenizer`."""

from helpers.tiny_tokenizer import sentence

CHOICES = ["w4", "w7 w8", "w7 w9 w2", "w11", "w12 w13"]


def question(i, **more):
    """A row whose number of choices depends on ``i``."""
    choices = CHOICES[: 2 + i % 4]
    return {"question": sentence(2 + i % 5, seed=i), "choices": choices, "answer": 0} | more
