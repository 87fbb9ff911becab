"""Checkpoints on disk: written as people have them, and read with nothing missing."""

from transformers import AutoModelForCausalLM

from helpers.families import weights_type
from helpers.tiny_tokenizer import tiny_tokenizer

SHARDED = "model.safetensors.index.json"


def save(model, folder):
    """A model and its tokenizer in one folder."""
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def saved(model, folder, shard_size="12KB"):
    """A model alone, in shards of a size."""
    model.save_pretrained(folder, max_shard_size=shard_size)
    assert (folder / SHARDED).is_file() == (shard_size != "5GB")
    return folder


def load(folder, **settings):
    """A model in the type of its weights; fails where the folder has more or less than it needs."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **weights_type("auto") | settings
    )
    assert {kind: list(keys) for kind, keys in info.items() if keys} == {}
    return model.eval()
