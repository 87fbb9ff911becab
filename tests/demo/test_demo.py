"""The bundled world and checkpoints, and the demo's own claim."""

import json

import pytest
import torch

import expertsteer as es
from expertsteer import demo
from expertsteer.demo import train, world
from expertsteer.demo.files import write_files
from expertsteer.demo.run import run_demo
from expertsteer.evaluation.comparison import PROMPT, UNSTEERED
from expertsteer.evaluation.methods import ALIGNED, OWN, PAPER, SHUFFLED
from expertsteer.models.scoring import choice_probabilities


def test_the_checkpoints_are_small_and_share_neither_shape_nor_token_numbers():
    folders = [demo.checkpoint(name) for name in demo.CHECKPOINTS]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 3_000_000
    (expert, expert_tokens), (target, target_tokens) = map(demo.load, demo.CHECKPOINTS)
    assert expert.config.hidden_size != target.config.hidden_size
    assert expert.config.num_hidden_layers != target.config.num_hidden_layers
    text = world.questions("test")[0].prompt
    assert expert_tokens(text)["input_ids"] != target_tokens(text)["input_ids"]
    assert expert_tokens.unk_token_id not in expert_tokens(text)["input_ids"]


def test_no_bias_on_answers_gives_more_than_half():
    """Where one answer is the specialist's, it is the other dialect's equally often."""
    for split in world.SPLITS:
        questions = world.questions(split)
        told = {d: sorted(q.answers[d] for q in questions) for d in world.DIALECTS}
        assert told[world.SPECIALIST] == told[world.OTHER]
        assert all(q.answers[world.SPECIALIST] != q.answers[world.OTHER] for q in questions)
        assert all(set(q.answers.values()) <= set(q.choices) for q in questions)


def test_contrast_and_questions_speak_of_different_animals():
    groups = list(world.groups().values())
    assert len(set().union(*groups)) == sum(map(len, groups))
    texts = " ".join(world.contrast_texts()[0]).split()
    for split in world.SPLITS:
        assert not set(world.groups()[split]) & set(texts)
    prompts = [{q.prompt for q in world.questions(split)} for split in world.SPLITS]
    assert not set.intersection(*prompts)


def test_its_files_hold_the_same_world_and_never_overwrite(tmp_path):
    folder = write_files(tmp_path / "try")
    assert es.ContrastSet.from_jsonl(folder / "contrast.jsonl") == demo.contrast_set()
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    for split in world.SPLITS:
        here = [row for row in rows if row["split"] == split]
        answers = [q.answers[world.SPECIALIST] for q in world.questions(split)]
        assert [row["answer"] for row in here] == answers
    plain = (folder / "plain.txt").read_text().splitlines()
    assert plain == world.plain_texts(40, seed=3)
    for name in demo.CHECKPOINTS:
        assert {f.name for f in (folder / name).iterdir()} >= {"config.json", "model.safetensors"}
    with pytest.raises(ValueError, match="already holds expert, target, contrast.jsonl"):
        write_files(folder)


def test_the_contrast_set_is_balanced_and_its_pairs_end_alike():
    contrast = demo.contrast_set(40)
    assert contrast.labels.count(1) == contrast.labels.count(0) == 20
    by_pair = {}
    for example in contrast:
        by_pair.setdefault(example.pair, []).append(example)
    for first, second in by_pair.values():
        assert first.label != second.label and first.text != second.text
        assert first.text.split()[-3:] == second.text.split()[-3:]


def target_belief(split):
    """The questions, and what the unsteered target thinks of their choices."""
    model, tokenizer = demo.load("target")
    questions = world.questions(split)
    choices = [[f" {c}" for c in q.choices] for q in questions]
    prompts = [q.prompt for q in questions]
    return questions, choice_probabilities(model, tokenizer, prompts, choices)


@pytest.mark.parametrize("split", world.SPLITS)
def test_the_target_hedges_where_nothing_says_which_dialect(split):
    questions, belief = target_belief(split)
    share = {}
    for dialect in world.DIALECTS:
        place = torch.tensor([q.choices.index(q.answers[dialect]) for q in questions])
        share[dialect] = float(belief.gather(1, place.unsqueeze(1)).mean())
    assert all(0.35 < s < 0.65 for s in share.values())
    assert sum(share.values()) > 0.9  # it knows both answers


@pytest.mark.parametrize("split", world.SPLITS)
def test_the_checkpoints_belong_to_this_world(split):
    """A question's leaning is what the training documents make it, so neither changed alone."""
    questions, belief = target_belief(split)
    mentions = {d: world.fame(d) for d in world.DIALECTS}
    animals = [animal for animal in world.groups()[split] for _ in world.ATTRIBUTES]
    leaning, expected = [], []
    for row, question, animal in zip(belief, questions, animals):
        counts = {d: mentions[d][animal] for d in world.DIALECTS}
        dearer = max(counts, key=counts.get)
        leaning.append(float(row[question.choices.index(question.answers[dearer])]))
        expected.append(counts[dearer] / sum(counts.values()))
    wanted = sum(expected) / len(expected)
    assert sum(leaning) / len(leaning) == pytest.approx(wanted, abs=0.04)


def test_training_is_reproducible():
    recipe = train.Recipe(width=16, layers=1, specialist_share=0.5, steps=3, seed=5, batch_size=4)
    first, second = (train.train(recipe, progress=False)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """What the whole demo made, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, quiet=True), folder


@pytest.mark.slow
def test_at_equal_price_the_default_beats_its_controls(demonstrated):
    comparison = demonstrated[0].comparison
    best = "random directions, best of 5"
    assert "beats its controls" in comparison.verdict(PAPER)
    score = {row.name: row.score.mean for row in comparison.rows}
    assert score[PAPER] >= score[best] + 0.2
    for control in (SHUFFLED, "expert: bare auto-encoder"):
        assert "does NOT beat" in comparison.verdict(control)
        assert score[PAPER] >= score[control] + 0.2
    assert {UNSTEERED, best, PROMPT, *OWN, *ALIGNED} - set(score) == {"expert: identity"}
    assert list(comparison.skipped) == ["expert: identity"]  # the widths differ
    steered = [row for row in comparison.rows if row.strength is not None]
    # Neutral texts that nothing was chosen on: near the budget, not exactly on it.
    assert all(0.05 < row.divergence < 0.2 and row.within for row in steered)
    assert comparison.row(PROMPT).extra_tokens > 0


@pytest.mark.slow
def test_the_demo_leaves_everything_behind(demonstrated):
    evaluation, folder = demonstrated
    saved = es.SteeringVectors.from_pretrained(folder / "vectors")
    chosen = evaluation.comparison.row(PAPER)
    assert saved.layers == chosen.layers
    assert saved.metadata["evaluation"][0]["verdict"] == evaluation.verdict
    model, _ = demo.load("target")
    with es.attach(model, saved, strength=chosen.strength) as steering:
        assert steering.attached
    document = json.loads((folder / "results.json").read_text())
    table = document["comparison"]
    assert table["budget"] == 0.1
    assert [row["name"] for row in table["rows"]] == [r.name for r in evaluation.comparison.rows]
    assert [item["after"] for item in document["examples"]] == list(chosen.values)
    assert {PAPER, SHUFFLED, *OWN} < document["curves"].keys()
    for picture in ("layer_pairs.png", "strength_curve.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of"):
        demo.load("oracle")
    with pytest.raises(ValueError, match="split must be one of"):
        world.questions("train")
