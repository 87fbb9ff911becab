"""The expert as labeller: what it is asked about the texts of a task, and which labels are kept."""

from __future__ import annotations

import gc
import json

import torch
from torch import Tensor

import expertsteer as es
from benchmarks.real.lab import Context
from expertsteer.models.labelling import PLACE
from expertsteer.states.states import HiddenStates
from expertsteer.support.tensors import permutation

QUESTIONS = {
    "sentiment": "Is the opinion in this text good?",
    "arithmetic": "Is this calculation right?",
    "formal": "Is this sentence written in formal words?",
    "facts": "Is this statement true?",
    "python": "Does this Python assertion hold?",
    "claims": "Is the answer that is given here right?",
}
ANSWERS = ("Yes", "No")


def expert_log_odds(context: Context) -> Tensor:
    """Nats by which it says yes of every text of the fitting set, less their median ``[N]``.

    They are kept beside the captures. Half of the texts are positive, so that the median counts
    as undecided: a small model says one of the two words more often whatever it reads.
    """
    task, lab = context.ready.task, context.lab
    texts = task.contrast(context.seed).texts
    kept = lab.captures / f"{task.name}-{context.seed}-{lab.expert}-labels.json"
    if not kept.is_file():
        model, tokenizer = lab.load(lab.expert)
        content = f"{QUESTIONS[task.name]} Answer with Yes or No.\n\n{PLACE}"
        question = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        told = es.label_by_expert(
            model, tokenizer, texts, question, ANSWERS, keep=1.0, centred=True, batch_size=32
        )
        del model
        gc.collect()
        kept.write_text(json.dumps(told.log_odds.tolist()))
    log_odds = torch.tensor(json.loads(kept.read_text()), dtype=torch.float64)
    return log_odds - log_odds.quantile(0.5)


def surest(certain: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of the ``count / 2`` largest and smallest values, in order, and their labels."""
    order = certain.argsort(descending=True, stable=True)
    rows = torch.cat([order[: count // 2], order[-(count // 2) :]])
    labels = (torch.arange(len(rows)) < count // 2).long()
    rows, places = rows.sort()
    return rows, labels[places]


def true_rows(states: HiddenStates, count: int, seed: int) -> Tensor:
    """Rows of ``count / 2`` pairs, drawn by the seed: as many of either label."""
    drawn = permutation(len(states) // 2, seed)[: count // 2]
    wanted = states.pairs.unique()[drawn]
    return torch.isin(states.pairs, wanted).nonzero().flatten()
