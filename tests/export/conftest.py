"""What the tests of exports share."""

import pytest

from helpers.checkpoints import saved
from helpers.steered_models import llama
from helpers.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama checkpoint in several shards with everything that may lie beside its weights."""
    folder = tmp_path_factory.mktemp("source") / "base"
    model = llama()
    model.generation_config.top_k = 7
    model.generation_config.do_sample = True
    saved(model, folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "README.md").write_text("---\nlicense: mit\nlicense_link: x\n---\n# Base\n")
    (folder / "LICENSE").write_text("as the base says")
    (folder / "notes").mkdir()
    (folder / "notes" / "more.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"the unsteered model again")
    return folder
