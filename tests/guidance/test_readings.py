"""Two tokenizers, one text: where each has read as much as the other, and never more."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expertsteer.guidance.readings import read_together, texts_of, written

TEXTS = ["60 - 23 = ", "60 - 23 = 3", "60 - 23 = 37", "60 - 2", "café ☃ a"]


def byte_tokenizer(*merges):
    """Bytes, and the merges that are given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split()) for merge in merges]
    words = [*alphabet, *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SINGLE, MERGING = byte_tokenizer(), byte_tokenizer("3 7", "= Ġ", "=Ġ 37")


@pytest.mark.parametrize("tokenizer", [SINGLE, MERGING], ids=["bytes", "merging"])
def test_every_place_has_the_text_before_it_and_the_answer_is_whole(tokenizer):
    (found,) = written(tokenizer, ["60 - 23 = "], ["37"])
    assert found.texts[0] == "60 - 23 = " and found.texts[-1] == "60 - 23 = 37"
    assert len(found.texts) == len(found.places)
    for place, text in zip(found.places, found.texts):
        assert tokenizer.decode(found.ids[: place + 1]) == text


def test_the_prompts_own_tokens_stay_where_an_answer_would_join_them():
    prompt = MERGING("60 - 23 = ")["input_ids"]
    assert MERGING("60 - 23 = 37")["input_ids"][: len(prompt)] != prompt
    (found,) = written(MERGING, ["60 - 23 = "], ["37"])
    assert found.ids[: len(prompt)] == prompt and found.start == len(prompt) - 1


def test_half_a_character_has_not_been_read():
    ids = SINGLE("a☃")["input_ids"]
    assert len(ids) == 4
    assert texts_of(SINGLE, [ids[:n] for n in range(1, 5)]) == ["a", "a", "a", "a☃"]


@pytest.mark.parametrize("tokenizer", [SINGLE, MERGING], ids=["bytes", "merging"])
def test_every_text_is_read_to_its_end_and_no_further(tokenizer):
    shared = read_together(tokenizer, TEXTS)
    flat = [row[: t + 1] for row, some in zip(shared.rows, shared.tokens) for t in some]
    assert [tokenizer.decode(flat[i]) for i in shared.order] == TEXTS
    assert [flat[i] for i in shared.order] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_no_row_begins_another_and_texts_on_the_way_are_read_with_it():
    shared = read_together(SINGLE, [*TEXTS, TEXTS[0]])  # one of them twice
    assert len(shared.rows) == 2 and len(shared.order) == 6 and shared.order[0] == shared.order[-1]
    assert len(read_together(MERGING, TEXTS).rows) == 3  # "= 37" and "= 3" share no "= "


@pytest.mark.parametrize(("prompt", "answer"), [("", "37"), ("60 - 23 = ", ""), ("60 - 23 =", "")])
def test_a_prompt_or_answer_without_tokens_is_refused(prompt, answer):
    with pytest.raises(ValueError, match="examples"):
        written(SINGLE, [prompt], [answer])


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        read_together(SINGLE, ["a", ""])
