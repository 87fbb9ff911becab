"""Labelled texts of many lengths."""

from expertsteer.contrast.contrast_set import ContrastSet
from helpers.tiny_tokenizer import sentence

TEXTS = [sentence(length, seed) for seed, length in enumerate((3, 9, 1, 6, 12, 2, 8))]
CONTRAST = ContrastSet.from_texts(TEXTS, [0, 1, 0, 1, 1, 0, 0])
