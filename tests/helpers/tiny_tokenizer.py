"""A word-level tokenizer built in code: no file, no network."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from helpers.families import VOCABULARY

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = tuple(f"w{i}" for i in range(VOCABULARY - len(SPECIAL)))

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<s> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


def tiny_tokenizer(padding_side: str = "right", *, chat: bool = False, bos: bool = True, **options):
    """A fast tokenizer of `VOCABULARY` words ``w0 w1 ...`` that puts ``<s>`` in front."""
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", words["<s>"])]
        )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=padding_side, **named, **options
    )
    if chat:
        result.chat_template = CHAT_TEMPLATE
    return result


def sentence(length: int, seed: int = 0) -> str:
    """So many words of the vocabulary, different for different seeds."""
    return " ".join(WORDS[(7 * seed + 13 * i + i * i) % len(WORDS)] for i in range(length))
