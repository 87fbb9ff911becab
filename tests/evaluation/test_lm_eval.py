"""lm-evaluation-harness on the live steered model, and its own steered model from our file."""

import pytest
import torch

pytest.importorskip("lm_eval")

import expertsteer as es
from expertsteer.evaluation.harness import evaluate_lm_eval, require_tasks
from expertsteer.evaluation.live_harness import Waiting, live_harness
from expertsteer.export import lm_eval
from helpers import HARNESS_TASKS
from helpers.checkpoints import save
from helpers.families import build
from helpers.likelihood import continued, log_probability
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

pytestmark = pytest.mark.transformers

TASKS = ["words_choice", "words_write", "words_read"]
STRENGTH = 1.5
# Requests (context, continuation) of different lengths; two share a context, and one ends in the
# token 0, which the harness pads with.
WORDS = [("w1 w2 w3", "w4"), ("w5", "w6 w7 w8"), ("w1 w2 w3", "w9"), ("w10 w11 w12 w13 w14", "w15")]
WORDS += [("w16 w17", "w18 w19"), ("w5", "w6"), ("w20", "w21 <pad> w22"), ("w20", "w21 w22")]


@pytest.fixture(autouse=True)
def _no_inventory(monkeypatch):
    """The harness lists every installed package in each result, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The task files, with the place of their data; what `datasets` makes of it stays here too."""
    import datasets

    root = tmp_path_factory.mktemp("tasks")
    for path in HARNESS_TASKS.glob("*.yaml"):
        (root / path.name).write_text(path.read_text().replace("DATA", str(HARNESS_TASKS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        yield root


@pytest.fixture(scope="module")
def model():
    return build("llama").eval()


@pytest.fixture(scope="module")
def vectors():
    torch.manual_seed(4)
    drawn = {layer: torch.randn(32) for layer in (0, 2)}
    return es.SteeringVectors(drawn, {0: 1.5, 2: 0.5})


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    return save(model, tmp_path_factory.mktemp("target"))


def test_tasks_run_without_and_with_steering_whatever_the_batch(folder, model, vectors):
    tokenizer = tiny_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = [
        evaluate_lm_eval(
            model,
            tokenizer,
            TASKS,
            vectors,
            strength=STRENGTH,
            include_path=folder,
            batch_size=size,
            progress=False,
        )
        for size in (1, 4)
    ]
    assert [(r.task, r.metric) for r in runs[0]] == [
        ("words_choice", "acc"),
        ("words_choice", "acc_norm"),
        ("words_write", "exact_match"),
        ("words_read", "word_perplexity"),
        ("words_read", "bits_per_byte"),
    ]
    for one, four in zip(*runs):
        assert one.unsteered[0] == pytest.approx(four.unsteered[0], rel=1e-5)
        assert one.steered[0] == pytest.approx(four.steered[0], rel=1e-5)
        assert one.items == 10
    accuracy, perplexity = runs[0][0], runs[0][3]
    assert perplexity.steered[0] != perplexity.unsteered[0] and not perplexity.higher_is_better
    assert accuracy.unsteered[1] > 0 and accuracy.test.items == 10
    gain = accuracy.steered[0] - accuracy.unsteered[0]
    assert accuracy.test.difference.mean == pytest.approx(gain)
    assert accuracy.to_dict()["steered"].keys() == {"value", "stderr"}
    assert tokenizer.padding_side == "right" and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_limit_and_examples_before_each_item_are_passed_on(folder, model, vectors):
    def run(task, **more):
        options = {"include_path": folder, "strength": 1.0, "progress": False} | more
        return evaluate_lm_eval(model, tiny_tokenizer(), [task], vectors, **options)

    rows = run("words_read", limit=3)
    assert [row.items for row in rows] == [3, 3] and rows == run("words_read", limit=0.3)
    whole = run("words_read")
    assert [row.items for row in whole] == [10, 10] and whole[0].unsteered != rows[0].unsteered
    contexts = []
    handle = model.register_forward_pre_hook(lambda _, args: contexts.append(args[0].shape[1]))
    for count in (0, 2):
        run("words_choice", num_fewshot=count, limit=1)
        contexts.append(None)
    handle.remove()
    before, after = (max(contexts[: contexts.index(None)]), max(filter(None, contexts)))
    assert after >= before + 4  # two more questions with their answers


def asked(harness, pairs=WORDS):
    """Log-probabilities that a harness gives to requests of its own kind."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(a, " " + b), idx=0)
        for a, b in pairs
    ]
    return [value for value, _ in harness.loglikelihood(requests)]


def expected(model, steering, positions):
    """The same by single unpadded passes, with the tokens to steer given as an explicit mask."""
    tokenizer, values = tiny_tokenizer(), []
    for context, continuation in WORDS:
        ids, start = continued(tokenizer, context, " " + continuation)
        place = torch.arange(len(ids))
        chosen = {
            "all": place >= 0,
            "prompt": place < start,
            "generated": place >= start,
            "last": place >= start - 1,
        }[positions]
        steering.set(positions=chosen.unsqueeze(0))
        values.append(log_probability(model, ids, start))
    return values


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_right_tokens_are_steered_and_never_padding(model, vectors, positions, batch_size):
    harness = live_harness(
        model, tiny_tokenizer(), batch_size, plain=positions == "all", progress=False
    )
    with es.attach(model, vectors, strength=STRENGTH, positions=positions, mode="slot") as steering:
        harness.steering = steering
        measured = asked(harness)
        assert measured == pytest.approx(expected(model, steering, positions), abs=1e-4)
    unsteered = asked(harness) if positions == "all" else None
    assert unsteered is None or max(abs(a - b) for a, b in zip(measured, unsteered)) > 0.01


def test_without_a_mask_only_all_positions_come_out_right(model, vectors):
    """Why the mask is supplied: the harness's own call takes padding for the last token."""
    harness = live_harness(model, tiny_tokenizer(), 8, progress=False)
    with es.attach(model, vectors, strength=STRENGTH, positions="last", mode="slot") as steering:
        wrong = asked(harness)
        right = expected(model, steering, "last")
    assert max(abs(a - b) for a, b in zip(wrong, right)) > 0.01


def test_a_long_context_is_cut_from_the_left_like_the_harness_does(model, vectors):
    pairs = [(sentence(90, seed=1), "w4 w5"), ("w1", "w2")]
    plain = live_harness(model, tiny_tokenizer(), 2, progress=False)
    masked = live_harness(model, tiny_tokenizer(), 2, plain=False, progress=False)
    assert asked(masked, pairs) == pytest.approx(asked(plain, pairs), abs=1e-4)


def test_padded_rows_are_told_apart():
    requests = [(None, [5], [0, 7]), (None, [5], [7]), (None, [5, 6], [1])]
    waiting = Waiting(requests, longest=9)
    assert waiting.lengths([[5, 0], [5, 6], [5, 0]]) == ([2, 2, 1], [1, 2, 1])
    with pytest.raises(RuntimeError, match="no request asked for"):
        waiting.lengths([[5, 0]])
    with pytest.raises(ValueError, match="cannot be told apart"):
        Waiting([(None, [5], [6, 7]), (None, [5, 6], [7])], longest=9)


@pytest.mark.parametrize("operation", ["add", "clamp", "remove"])
def test_the_harness_own_steered_model_gives_the_same_numbers(
    tmp_path, folder, saved, vectors, operation
):
    from lm_eval import simple_evaluate
    from lm_eval.models.hf_steered import SteeredModel

    model, tokenizer = es.models.load(saved, device="cpu")
    strength = 1.0 if operation == "remove" else STRENGTH
    path = lm_eval.write(tmp_path / "v.pt", vectors, model, strength=strength, operation=operation)
    theirs = SteeredModel(str(saved), str(path), device="cpu", batch_size=4, dtype="float32")
    live = live_harness(model, tokenizer, 4, progress=False)
    plain = asked(live)
    with es.attach(model, vectors, strength=strength, operation=operation):
        ours = asked(live)
    assert asked(theirs) == pytest.approx(ours, abs=2e-4)
    assert max(abs(a - b) for a, b in zip(ours, plain)) > 0.05
    if operation == "add":
        _, manager = require_tasks(["words_write", "words_choice"], folder)
        options = {"task_manager": manager, "bootstrap_iters": 0, "log_samples": False}
        told = simple_evaluate(theirs, tasks=["words_write", "words_choice"], **options)["results"]
        rows = evaluate_lm_eval(
            model,
            tokenizer,
            ["words_write", "words_choice"],
            vectors,
            strength=strength,
            include_path=folder,
            batch_size=4,
            progress=False,
        )
        for row in rows:
            assert row.steered[0] == told[row.task][f"{row.metric},{row.filter}"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tasks": []}, "at least one lm-eval task"),
        ({"tasks": ["no_such_task"]}, "knows no task 'no_such_task'"),
        ({"include_path": "/no/such/folder"}, "there is no folder '/no/such/folder'"),
        ({"limit": 0}, "limit must be a number of items"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"positions": "middle"}, "positions must be one of"),
        ({"strength": "auto"}, "hold no calibration"),
    ],
)
def test_bad_input_is_named(folder, model, vectors, change, named, monkeypatch):
    if change.get("tasks") == ["no_such_task"]:  # their thousands of files take long to read
        monkeypatch.setattr("lm_eval.tasks.TaskManager", only_own(folder))
    options = {"tasks": ["words_read"], "include_path": folder, "progress": False} | change
    with pytest.raises(ValueError, match=named):
        evaluate_lm_eval(model, tiny_tokenizer(), options.pop("tasks"), vectors, **options)


def only_own(folder):
    from lm_eval.tasks import TaskManager

    return lambda include_path=None, include_defaults=True: TaskManager(
        include_path=include_path, include_defaults=False
    )
