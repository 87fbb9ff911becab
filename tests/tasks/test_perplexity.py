"""Perplexity of texts of one's own: read one a line, and every token weighs the same."""

import pytest
import torch

import expertsteer as es
from expertsteer.models.scoring import mean_loss
from expertsteer.tasks import TaskError, load_task
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers


def test_perplexity_weighs_every_token_the_same(model, tokenizer):
    texts = [sentence(3 + 4 * i, seed=i) for i in range(6)]
    on = es.Perplexity.from_texts(texts).on(model, tokenizer, validation=0.3)
    kept = [item.prompt for item in on.items["test"]]
    losses = mean_loss(model, tokenizer, kept)
    tokens = torch.tensor([len(tokenizer(t)["input_ids"]) - 1 for t in kept])
    expected = float((losses * tokens).sum() / tokens.sum())
    assert -float(on.score("test").mean()) == pytest.approx(expected, rel=1e-6)
    told = on.measure("test").texts[0]
    assert told == f"{losses[0]:.3f} nats per token"
    behind = mean_loss(model, tokenizer, kept, context="w1 w2 ")
    expected = float((behind * tokens).sum() / tokens.sum())
    assert -float(on.score("test", "w1 w2 ").mean()) == pytest.approx(expected, rel=1e-6)


def test_perplexity_reads_texts_one_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2\n\nw3 w4 w5\n")
    task = load_task(path, "perplexity")
    assert [item.prompt for item in task.items] == ["w1 w2", "w3 w4 w5"]


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "there is none at"), (b"", "holds no text"), (b"\xff\xfe", "no UTF-8 text")],
)
def test_a_text_file_that_cannot_be_read_is_named(tmp_path, content, named):
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskError, match=f"(?s)(texts.txt.*{named}|{named}.*texts.txt)"):
        load_task(path, "perplexity")
    with pytest.raises(TaskError, match="task must name a JSON-lines file, came None"):
        load_task(None)


def test_a_text_without_a_second_token_is_named(model):
    bare = tiny_tokenizer(bos=False)
    with pytest.raises(TaskError, match="text 1: a loss needs at least 2 tokens"):
        es.Perplexity.from_texts(["w1 w2", "w3", "w3 w4", "w5 w6"]).on(model, bare)
