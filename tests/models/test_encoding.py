"""One place makes token ids of texts, and no special token stands there twice."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

import expertsteer as es
from expertsteer.calibration.divergence import neutral_texts
from expertsteer.contrast.contrast_set import ContrastSet
from expertsteer.models.encoding import behind_prompt, encode, text_tokenizer
from expertsteer.models.scoring import mean_loss
from expertsteer.states.tokens import token_ids
from expertsteer.tasks import Generation, MultipleChoice, Perplexity
from helpers.checkpoints import save
from helpers.command import run
from helpers.tiny_tokenizer import CHAT_TEMPLATE, sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

BOS, EOS = 1, 2
TEXTS = [sentence(length, seed) for seed, length in enumerate((3, 9, 1, 6))]


def ending_tokenizer(**options):
    """Puts ``<s>`` before every text and ``</s>`` behind it."""
    tokenizer = tiny_tokenizer(**options)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, ending_tokenizer])
def test_a_rendered_text_has_the_tokens_of_the_plain_one(make):
    tokenizer = make()
    plain = encode(tokenizer, TEXTS)
    assert plain == tokenizer(TEXTS)["input_ids"]
    assert encode(tokenizer, [f"<s> {text}" for text in TEXTS]) == plain
    ended = [row if row[-1] == EOS else [*row, EOS] for row in plain]
    assert encode(tokenizer, [f"{text} </s>" for text in TEXTS]) == ended
    assert encode(tokenizer, [f"<s> {text} </s>" for text in TEXTS]) == ended


def test_only_what_the_tokenizer_adds_is_left_out():
    tokenizer, ending, bare = tiny_tokenizer(), ending_tokenizer(), tiny_tokenizer(bos=False)
    assert encode(tokenizer, ["<s>", "", "w1 <s> w1", "</s> w1"]) == [
        [BOS],
        [BOS],
        [BOS, 5, BOS, 5],
        [BOS, EOS, 5],
    ]
    assert encode(tokenizer, ["<s> <s> w1"]) == [[BOS, BOS, 5]]  # meant so, whoever wrote it
    assert encode(ending, ["<s>", "</s>", "<s> </s>", ""]) == [[BOS, EOS]] * 4
    assert encode(bare, ["<s> w1", "w1"]) == [[BOS, 5], [5]]
    assert encode(tokenizer, ["<s> w1", "w1"], special=False) == [[BOS, 5], [5]]
    assert encode(tokenizer, []) == []


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [tiny_tokenizer, ending_tokenizer])
def test_cutting_keeps_what_the_tokenizer_would_keep(make, side):
    tokenizer = make(truncation_side=side)
    for length in range(1 if make is tiny_tokenizer else 2, 12):
        kept = tokenizer(TEXTS, truncation=True, max_length=length)["input_ids"]
        assert encode(tokenizer, TEXTS, max_length=length) == kept
        rendered = [f"<s> {text}" for text in TEXTS]
        assert encode(tokenizer, rendered, max_length=length) == kept


def test_every_way_into_the_package_gives_the_same_tokens(model):
    tokenizer, rendered = tiny_tokenizer(), [f"<s> {text}" for text in TEXTS]
    plain = encode(tokenizer, TEXTS)
    assert token_ids(tokenizer, ContrastSet.from_texts(rendered, [0, 1, 0, 1])) == (plain, 0)
    assert [list(row) for row in neutral_texts(model, rendered, tokenizer).rows] == plain
    assert torch.equal(
        mean_loss(model, tokenizer, rendered[:2]), mean_loss(model, tokenizer, TEXTS[:2])
    )
    for task, row in (
        (Perplexity, lambda text: {"text": text}),
        (Generation, lambda text: {"prompt": text, "answer": "w1"}),
        (MultipleChoice, lambda text: {"question": text, "choices": ["w1", "w2"], "answer": 0}),
    ):
        made = [task.from_rows(map(row, texts)) for texts in (TEXTS, rendered)]
        one, other = (t.encoded(tokenizer, t.items, "w7 ") for t in made)
        assert one == other, task.__name__


def test_the_command_continues_a_rendered_prompt_as_the_plain_one(tmp_path, model):
    save(model, tmp_path / "model")
    es.SteeringVectors({1: torch.ones(32)}, {1: 1.0}).save_pretrained(tmp_path / "vectors")
    told = []
    for prompt in ("w1 w2", "<s> w1 w2"):
        arguments = ("--model", tmp_path / "model", "--vectors", tmp_path / "vectors")
        ran = run("generate", *arguments, "--prompt", prompt, "--json", "--max-new-tokens", "4")
        assert ran.returncode == 0, ran.stderr
        told.append({k: v for k, v in json.loads(ran.stdout).items() if k != "prompt"})
    assert told[0] == told[1]


def test_a_prompt_goes_behind_the_beginning_of_a_rendered_text():
    tokenizer = tiny_tokenizer()
    (plain,) = encode(tokenizer, [behind_prompt(tokenizer, "w5 ", "w1")])
    (rendered,) = encode(tokenizer, [behind_prompt(tokenizer, "w5 ", "<s> w1")])
    assert plain == rendered == [BOS, 9, 5]
    assert behind_prompt(tokenizer, "", "<s> w1") == "<s> w1"


class Processor:
    """What models of several modalities come with: calling it with texts alone would fail."""

    def __init__(self, tokenizer, chat_template=None):
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def __call__(self, images=None, text=None, **options):
        raise ValueError("Incorrect image source")


def test_a_processor_stands_for_its_tokenizer(model):
    tokenizer, contrast = tiny_tokenizer(), ContrastSet.from_texts(TEXTS, [0, 1, 0, 1])
    processor = Processor(tokenizer)
    assert text_tokenizer(processor) is tokenizer
    came = es.capture(model, processor, contrast)
    assert torch.equal(came.states, es.capture(model, tokenizer, contrast).states)
    assert neutral_texts(model, TEXTS, processor) == neutral_texts(model, TEXTS, tokenizer)
    rows = [{"prompt": text, "answer": "w1"} for text in TEXTS]
    assert Generation.from_rows(rows).on(model, processor).tokenizer is tokenizer


def test_a_tokenizer_that_holds_another_one_is_taken_for_itself():
    tokenizer = tiny_tokenizer()
    tokenizer.tokenizer = object()  # as the remote code of some families does
    assert text_tokenizer(tokenizer) is tokenizer


def test_messages_with_a_processor_whose_tokenizer_has_no_template_are_refused(model):
    messages = [{"role": "user", "content": "w1"}]
    contrast = ContrastSet.from_texts([messages, messages], [0, 1])
    processor = Processor(tiny_tokenizer(), CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="set tokenizer.chat_template"):
        es.capture(model, processor, contrast)
    processor.tokenizer.chat_template = CHAT_TEMPLATE
    es.capture(model, processor, contrast)


@pytest.mark.parametrize(
    "given, way",
    [
        ("name", "came str; load one with transformers.AutoTokenizer.from_pretrained"),
        (None, "came NoneType; load one"),
        (Tokenizer(WordLevel({"a": 0}, unk_token="a")), "came Tokenizer; wrap it"),
        (Processor, "came Processor; load one"),
    ],
)
def test_what_is_no_tokenizer_is_refused_with_the_way_to_one(model, given, way):
    contrast = ContrastSet.from_texts(TEXTS, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=f"tokenizer must be a tokenizer of transformers.*{way}"):
        es.capture(model, given, contrast)
    with pytest.raises(ValueError, match=way):
        Perplexity.from_texts(TEXTS).on(model, given)
