"""What the benchmarks of capture and of many concepts run: the work, its peers, their checks."""

from __future__ import annotations

from functools import partial

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import expertsteer as es
from benchmarks import timing
from expertsteer.models.batches import length_batches, padded
from expertsteer.models.forward import run_layers
from expertsteer.states.reader import Reader

WORDS = 4000
BATCH = 16


def model(layers=6, width=256, seed=0):
    """A Llama-type model with random weights, ``layers`` x ``width``."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokenizer():
    words = {"<pad>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    words = Tokenizer(WordLevel(words, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side="right"
    )


def contrast(count, shortest=16, longest=128, seed=0):
    """Texts of random words; those of label 1 end in the same one."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=random).tolist()
    texts = []
    for i, length in enumerate(lengths):
        words = torch.randint(10, WORDS, (length,), generator=random).tolist()
        texts.append(" ".join(f"w{w}" for w in [*words[:-1], 2 + i % 2]))
    return es.ContrastSet.from_texts(texts, [i % 2 for i in range(count)])


def ours(network, words, texts, folder):
    return es.capture_to(folder, network, words, texts, batch_size=BATCH, progress=False)


@torch.no_grad()
def plain(network, words, texts, sort=False, head=True):
    """``[L, N, D]`` by the usual loop: all hidden states of a batch, then their last tokens.

    ``sort`` and no ``head`` are what a careful user adds: batches of like lengths, and no logits.
    """
    order = list(range(len(texts)))
    if sort:
        order.sort(key=lambda i: -len(texts[i].text))
    runner, states = network if head else network.base_model, []
    for first in range(0, len(order), BATCH):
        some = [texts[i].text for i in order[first : first + BATCH]]
        inputs = words(some, padding=True, return_tensors="pt", return_token_type_ids=False)
        out = runner(**inputs, output_hidden_states=True, use_cache=False)
        last = inputs["attention_mask"].sum(dim=1) - 1
        rows = torch.arange(len(some))
        states.append(torch.stack([h[rows, last] for h in out.hidden_states[1:]]))
    return torch.cat(states, dim=1)[:, torch.tensor(order).argsort()]


def agree(found, expected):
    """Largest relative difference, without the last layer: the loop's has passed the norm."""
    found, expected = found[:-1], expected[:-1]
    return float((found - expected).norm(dim=-1).div(expected.norm(dim=-1)).max())


@torch.no_grad()
def forward_passes(network, words, texts, part):
    """Seconds of the model's passes alone, over the batches of a capture in parts of ``part``."""
    reader = Reader(network, words, layers=None, position="last", batch_size=BATCH, dtype=None,
                    max_length=None, decoder_layers=None)  # fmt: skip
    spent = 0.0
    for first in range(0, len(texts), part):
        rows, _ = reader.tokens(texts[first : first + part])
        for batch in length_batches(list(map(len, rows)), BATCH):
            ids, mask = padded([rows[i] for i in batch])
            work = partial(run_layers, network, reader._found, ids, mask)
            spent += timing.once(work)[1]
    return spent


def demo_concepts(concepts, examples):
    """Contrast sets of the demo's world, all texts different."""
    from expertsteer import demo

    texts = list(demo.contrast_set(concepts * examples + 400))
    different = list({example.text: example for example in texts}.values())
    ones, zeros = ([e for e in different if e.label == label] for label in (1, 0))
    half = examples // 2
    if min(len(ones), len(zeros)) < concepts * half:
        raise ValueError(f"the demo has {len(ones)} and {len(zeros)} different texts")
    sets = {}
    for c in range(concepts):
        some = slice(c * half, (c + 1) * half)
        rows = [e for pair in zip(ones[some], zeros[some]) for e in pair]
        sets[f"concept{c:03d}"] = es.ContrastSet.from_texts(
            [e.text for e in rows], [e.label for e in rows]
        )
    return sets


def made_concepts(concepts, examples, length):
    return {f"concept{c:03d}": contrast(examples, length, length, seed=c) for c in range(concepts)}


def many(sets, expert, target, folder):
    """The index that `fit_concepts` makes."""
    return es.fit_concepts(
        sets,
        expert[0],
        target[0],
        folder,
        es.ExpertSteer(rule="lowest", health=False, progress=False),
        expert_tokenizer=expert[1],
        target_tokenizer=target[1],
    )


def alone(contrast, expert, target):
    """The vectors of one concept, fitted by itself."""
    return es.ExpertSteer(rule="lowest", health=False, progress=False).fit(
        expert[0],
        target[0],
        contrast,
        expert_tokenizer=expert[1],
        target_tokenizer=target[1],
    )
