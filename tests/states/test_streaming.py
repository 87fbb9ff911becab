"""Layers from disk: the same values, and never more than a layer in memory."""

import sys

import numpy as np
import pytest
import torch

import expertsteer as es
from helpers.command import python


@pytest.mark.parametrize("estimator", ["gaussian", "ksg", "renyi2"])
def test_stored_layers_give_what_states_in_memory_give(make_states, tmp_path, estimator):
    expert, target = make_states(seed=1), make_states(layers=2, width=9, seed=2)
    expert.save_pretrained(tmp_path / "expert")
    target.save_pretrained(tmp_path / "target")
    stored = [es.HiddenStates.open(tmp_path / name) for name in ("expert", "target")]
    assert stored[0].shape == (3, 80, 12) and stored[1].layers == (0, 1)
    assert torch.equal(stored[0].states[2], expert.states[2]) and len(stored[0]) == len(expert)
    found = es.mutual_information(*stored, estimator)
    assert torch.equal(found, es.mutual_information(expert, target, estimator))


def test_a_damaged_file_is_refused(make_states, tmp_path):
    make_states().save_pretrained(tmp_path)
    path = tmp_path / "hidden_states.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(es.ArtifactError, match="truncated"):
        es.HiddenStates.open(tmp_path)
    with pytest.raises(es.ArtifactError, match="holds no hidden_states"):
        es.HiddenStates.open(tmp_path / "nowhere")


LAYERS, EXAMPLES, WIDTH = 24, 500, 4096  # 187 MiB for each side
STREAMED = """
import sys
import numpy as np, torch
import expertsteer as es
from helpers.memory import peak

class OnDisk:
    def __init__(self, path):
        self.path = path
    def __len__(self):
        return {layers}
    def __getitem__(self, index):
        count = {examples} * {width}
        flat = np.fromfile(self.path, np.float32, count, offset=4 * count * index)
        return torch.from_numpy(flat).view({examples}, {width})

sources = {sources}
few = [[source[0]] for source in sources]
es.mutual_information(*few, sys.argv[1])  # libraries, threads and one layer are not the question
before = peak()
nats = es.mutual_information(*sources, sys.argv[1])
assert nats.shape == ({layers}, {layers}) and bool(torch.isfinite(nats).all())
print(peak() - before)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    generator = np.random.default_rng(0)
    for name in ("x", "y"):
        with open(folder / name, "wb") as stream:
            for _ in range(LAYERS):
                layer = generator.standard_normal((EXAMPLES, WIDTH), dtype=np.float32)
                stream.write(layer.tobytes())
    states = torch.from_file(str(folder / "x"), size=LAYERS * EXAMPLES * WIDTH, dtype=torch.float32)
    captured = es.HiddenStates(states.view(LAYERS, EXAMPLES, WIDTH), torch.arange(EXAMPLES) % 2)
    captured.save_pretrained(folder / "saved")
    return folder


def grown(sources, estimator):
    script = STREAMED.format(sources=sources, layers=LAYERS, examples=EXAMPLES, width=WIDTH)
    return int(python("-c", script, estimator))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux reports it")
@pytest.mark.parametrize("estimator", ["gaussian", "ksg", "renyi2"])
def test_memory_does_not_grow_with_the_number_of_layers(files, estimator):
    all_states = 2 * 4 * LAYERS * EXAMPLES * WIDTH
    budget = 150 * 2**20
    assert budget < all_states / 2
    assert (
        grown(f"[OnDisk({str(files / 'x')!r}), OnDisk({str(files / 'y')!r})]", estimator) < budget
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux reports it")
def test_saved_captures_are_streamed_too(files):
    saved = str(files / "saved")
    sources = f"[es.HiddenStates.open({saved!r}).states for _ in range(2)]"
    assert grown(sources, "gaussian") < 100 * 2**20 < 4 * LAYERS * EXAMPLES * WIDTH
