"""What the benchmarks of capture and of many concepts run: the work, its peers, their checks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import expertsteer as es
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
    """Only the model's passes, over the batches that a capture in parts of ``part`` takes."""
    reader = Reader(network, words, layers=None, position="last", batch_size=BATCH, dtype=None,
                    max_length=None, decoder_layers=None)  # fmt: skip
    spent = 0.0
    for first in range(0, len(texts), part):
        rows, _ = reader.tokens(texts[first : first + part])
        for batch in length_batches(list(map(len, rows)), BATCH):
            ids, mask = padded([rows[i] for i in batch])
            start = time.perf_counter()
            run_layers(network, reader._found, ids, mask)
            spent += time.perf_counter() - start
    return spent


MEMORY = """
import sys, tempfile
import torch
from benchmarks.states import cases
torch.set_num_threads(1)
kind, rounds = sys.argv[1], 2
network, words = cases.model(), cases.tokenizer()
texts = cases.contrast(32, 128, 128)
def now(name):
    return int(open("/proc/self/status").read().split(name)[1].split()[0]) / 1024
def work():
    if kind == "passes":
        cases.forward_passes(network, words, texts, 32)
    elif kind == "ours":
        with tempfile.TemporaryDirectory() as folder:
            cases.ours(network, words, texts, folder + "/out")
    else:
        cases.plain(network, words, texts, head=kind == "plain")
work()  # what is made once
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the peak starts anew
before = now("VmRSS:")
work()
print(now("VmHWM:") - before)
"""


def peak(kind):
    """MiB that ``"passes"``, ``"plain"``, ``"headless"`` or ``"ours"`` takes beyond the model.

    What is freed goes back to the system at once, so that the peak is what is held.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    return float(done.stdout)


RANK = """
import sys, time
import torch
from benchmarks.states import cases
from expertsteer.support.ranks import ranks_of_torchrun
threads, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(threads)
network, words, texts = cases.model(), cases.tokenizer(), cases.contrast(512)
cases.plain(network, words, texts[:32])
with ranks_of_torchrun() as ranks:
    ranks.wait()
    start = time.perf_counter()
    stored = cases.ours(network, words, texts, folder)
    ranks.wait()
    if ranks.rank == 0:
        print("seconds", time.perf_counter() - start)
        torch.save(stored.read().states, folder + "/states.pt")
"""


def by_ranks(size, threads):
    """Seconds of a capture by ``size`` processes of ``threads`` threads, and its states."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "rank.py"
        script.write_text(RANK)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        here = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(threads), folder + "/out"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": here},
        )
        states = torch.load(Path(folder) / "out" / "states.pt")
        return float(done.stdout.split("seconds")[1]), states


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
    """Seconds of `fit_concepts`, and the index it makes."""
    start = time.perf_counter()
    index = es.fit_concepts(
        sets,
        expert[0],
        target[0],
        folder,
        es.ExpertSteer(health=False, progress=False),
        expert_tokenizer=expert[1],
        target_tokenizer=target[1],
    )
    return time.perf_counter() - start, index


def unlike_alone(sets, expert, target, folder, some):
    """What is wrong with the first ``some`` concepts of a run, beside a fit of each alone."""
    for name in list(sets)[:some]:
        alone = es.ExpertSteer(health=False, progress=False).fit(
            expert[0],
            target[0],
            sets[name],
            expert_tokenizer=expert[1],
            target_tokenizer=target[1],
        )
        found = es.SteeringVectors.from_pretrained(Path(folder) / name)
        if found.layers != alone.layers:
            return f"{name}: layers {found.layers}, alone {alone.layers}"
        least = min(float(found.vectors[i] @ alone.vectors[i]) for i in alone.layers)
        if not least > 0.999:
            return f"{name}: a cosine of {least:.4f} with the vectors fitted alone"
    return None
