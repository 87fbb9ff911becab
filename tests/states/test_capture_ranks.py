"""Several processes on one capture or fit: the same result, whoever did what and was killed."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import expertsteer as es
from expertsteer.models.loading import load
from expertsteer.pipeline.over_processes import information_over
from expertsteer.states.shards import Shards
from expertsteer.states.team import Team
from expertsteer.support.ranks import Ranks
from helpers import process_groups
from helpers.checkpoints import save
from helpers.families import build
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks processes and kills them"),
]
COUNT, SHARD = 48, 4


def contrast(count=COUNT):
    texts = [sentence(3 + i % 5, seed=i) + (" w1" if i % 2 else " w2") for i in range(count)]
    return es.ContrastSet.from_texts(
        texts, [i % 2 for i in range(count)], [i // 2 for i in range(count)]
    )


def capture(folder, model=None, **options):
    """With the examples that went through the model, in order."""
    model, seen = model or build("llama"), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    options = {"shard_examples": SHARD, "batch_size": 2, "progress": False} | options
    with_hook = es.capture_to(folder, model, tiny_tokenizer(), contrast(), **options)
    hook.remove()
    return sum(seen), with_hook.read().states


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return capture(tmp_path_factory.mktemp("alone") / "out")[1]


def test_ranks_share_the_work_and_agree(alone, tmp_path):
    results = process_groups.run(3, capture, tmp_path)
    assert [seen for seen, _ in results] == [16, 16, 16]
    assert all(torch.equal(states, alone) for _, states in results)


def dying(folder, when, after):
    """A capture that is killed at its ``when``-th renaming: before it, or just after it."""
    renamed, rename = [], Path.replace

    def replace(path, to):
        renamed.append(to)
        if after:
            rename(path, to)
        if len(renamed) > when:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if after else rename(path, to)

    Path.replace = replace
    capture(folder)


@pytest.mark.parametrize("when", [0, 1, 6])
@pytest.mark.parametrize("after", [False, True])
def test_a_capture_killed_at_any_moment_goes_on(alone, tmp_path, when, after):
    processes, _ = process_groups.start(2, dying, tmp_path, when, after)
    processes[0].join(60)  # the manifest is the first rank's, and then every rank has its shards
    process_groups.kill([p for p in processes[1:] if p.is_alive()])
    assert processes[0].exitcode == -signal.SIGKILL
    there = len(list(tmp_path.glob("states-*")))
    assert when == 0 or there >= when - 1 + after
    seen, states = capture(tmp_path)  # with another number of processes
    assert seen == COUNT - SHARD * there and torch.equal(states, alone)
    assert not list(tmp_path.glob(".states*"))


def bad_for_one(folder):
    """An example that only the second rank reads is longer than the model allows."""
    texts = [sentence(70 if i == 9 else 4, seed=i) for i in range(16)]
    examples = es.ContrastSet.from_texts(texts, [i % 2 for i in range(16)])
    options = {"shard_examples": 8, "progress": False}
    es.capture_to(folder, build("llama"), tiny_tokenizer(), examples, **options)


def test_an_error_of_one_rank_ends_the_others_with_a_reason(tmp_path):
    first, second = process_groups.run(2, bad_for_one, tmp_path)
    assert isinstance(second, ValueError) and "example 9 has 71 tokens" in str(second)
    assert isinstance(first, OSError) and "another process of this run" in str(first)
    assert Shards.open(tmp_path).missing() == [1]


def refused(folder):
    try:
        capture(folder, position="mean")
    except es.ArtifactError as error:
        return str(error), getattr(error, "shown_elsewhere", None)
    return None


def test_a_refusal_reaches_every_rank_and_is_told_once(alone, tmp_path):
    capture(tmp_path)
    (first, shown), (second, elsewhere) = process_groups.run(2, refused, tmp_path)
    assert "position: 'last' there, 'mean' asked for" in first and first == second
    assert (shown, elsewhere) == (False, True)


def tensor_parallel(folder, path):
    """One model over two processes; a third and fourth would be another copy of it."""
    model, tokenizer = load(path, device="tensor_parallel")
    assert Team.of(model, Ranks.here()).count == 1
    states = es.capture(model, tokenizer, contrast(), progress=False).states
    return states, *capture(folder, model)


def test_a_tensor_parallel_model_gives_the_states_of_one(alone, tmp_path):
    save(build("llama"), tmp_path / "model")
    with pytest.raises(ValueError, match="needs several processes, came one; start them with"):
        load(tmp_path / "model", device="tensor_parallel")
    for states, seen, stored in process_groups.run(
        2, tensor_parallel, tmp_path / "out", tmp_path / "model"
    ):
        assert seen == COUNT  # both halves of the model see every example
        torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored, alone, rtol=1e-4, atol=1e-5)


def fit(folder, estimator="gaussian"):
    pipeline = es.ExpertSteer(pairs=2, estimator=estimator, progress=False, captures=folder, null=2)
    models = build("gpt2", width=24, layers=4), build("llama")
    tokenizer = tiny_tokenizer()
    vectors = pipeline.fit(
        *models, contrast(), expert_tokenizer=tokenizer, target_tokenizer=tokenizer
    )
    assert pipeline.pairing_.settings["unit"] == "nats"  # an effect was measured
    assert len(pipeline.pairing_.expert_auc) == 4
    return vectors, pipeline.information_, pipeline.alignment_


@pytest.mark.filterwarnings("ignore:.*layer pairs have no more information", "ignore:.*too few")
def test_a_fit_is_the_same_by_any_number_of_ranks(tmp_path):
    expected, nats, maps = fit(tmp_path / "1")
    for size in (2, 3):
        for vectors, information, alignment in process_groups.run(size, fit, tmp_path / str(size)):
            assert vectors.layers == expected.layers and vectors.scales == expected.scales
            assert vectors.metadata == expected.metadata
            for layer in expected.layers:
                torch.testing.assert_close(vectors.vectors[layer], expected.vectors[layer])
            torch.testing.assert_close(information.nats, nats.nats)
            torch.testing.assert_close(information.floor, nats.floor)
            torch.testing.assert_close(alignment.encoder_weight, maps.encoder_weight)
            assert alignment.expert_layers == maps.expert_layers


def of_few_directions(_):
    """Expert layers of 6, 3 and 5 directions, so that each rank alone would keep another number."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.randn(64, width, generator=generator) @ torch.randn(width, 8, generator=generator)
        for width in (6, 3, 5)
    ]
    labels = torch.arange(64) % 2
    expert = es.HiddenStates(torch.stack(layers), labels)
    target = es.HiddenStates(torch.randn(2, 64, 8, generator=generator), labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = information_over(Ranks.here(), expert, target)
    return found.nats, found.components


def test_layers_of_few_directions_are_estimated_alike_by_any_number_of_ranks():
    nats, components = of_few_directions(None)
    assert components == 3 and bool(nats.isfinite().all())
    for found, count in process_groups.run(2, of_few_directions, None):
        assert count == 3
        torch.testing.assert_close(found, nats)


def test_ranks_need_a_folder_to_share():
    assert process_groups.run(2, in_memory) == [in_memory_error] * 2


in_memory_error = "captures must name a folder that all processes see, came None"


def in_memory():
    try:
        fit(None)
    except ValueError as error:
        return str(error).partition(":")[0]
    return None


def test_shares_are_disjoint_and_complete():
    shares = [Ranks(rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(10)) and max(map(len, shares)) == 4
    assert Ranks().first(lambda: 5) == 5 and Ranks().gather(5) == [5]


def test_torchrun_killed_and_resumed_by_one_process(tmp_path):
    save(build("llama"), tmp_path / "model")
    texts = [{"text": sentence(9, seed=i), "label": i % 2} for i in range(1000)]
    path = tmp_path / "contrast.jsonl"
    path.write_text("\n".join(map(json.dumps, texts)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "expertsteer", "capture", "--model", tmp_path / "model", "--contrast", path]
    command += ["--out", tmp_path / "out", "--device", "cpu", "--shard-examples", "4"]
    agent = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/states-*"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for pid in (agent.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    told = agent.communicate(timeout=30)[1]
    shards = Shards.open(tmp_path / "out")
    missing = shards.missing()
    assert 0 < len(missing) <= 240 and len(workers) == 2
    assert "1,000 examples x 3 layers x 32 in float32" in told and "2 copies of the model" in told
    model = build("llama")
    model.config._name_or_path = str(tmp_path / "model")
    seen = []
    model.model.layers[0].register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    contrast = es.ContrastSet.from_file(path)
    stored = es.capture_to(tmp_path / "out", model, tiny_tokenizer(), contrast, progress=False)
    assert sum(seen) == 4 * len(missing)
    whole = es.capture(model, tiny_tokenizer(), contrast, progress=False)
    torch.testing.assert_close(stored.read().states, whole.states)
    assert torch.equal(stored.keys, whole.keys)
