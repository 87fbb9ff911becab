"""Many concepts at once: each text captured once, the vectors those of fits one by one."""

import json

import pytest
import torch

import expertsteer as es
from helpers.checkpoints import save
from helpers.command import run
from helpers.families import build
from helpers.passes import Seen
from helpers.tiny_tokenizer import sentence, tiny_tokenizer

PLAIN = [sentence(3 + i % 4, seed=i) for i in range(20)]  # label 0 of every concept
NAMES = ("one", "two", "three")


def rows(concept):
    return [{"text": text, "label": 0} for text in PLAIN] + [
        {"text": f"{text} w{40 + concept}", "label": 1} for text in PLAIN
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "concepts"
    folder.mkdir()
    for concept, name in enumerate(NAMES):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows(concept))))
    return folder


@pytest.fixture(scope="module")
def models():
    return build("llama", width=24, layers=2), build("llama", layers=3)


def settings(**options):
    return es.ExpertSteer(pairs=2, null=None, progress=False, **options)


def fit(folder, models, out, **options):
    tokenizer = tiny_tokenizer()
    return es.fit_concepts(
        folder,
        *models,
        out,
        options.pop("settings", settings()),
        expert_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        **options,
    )


def test_each_concept_measures_the_effect_on_its_own_texts(models, tmp_path):
    prompts = [f"{text} " for text in PLAIN]
    words = {"one": ("w1", "w2"), "two": ("w3", "w4")}
    sets = {n: es.ContrastSet.from_pairs([(p, *w) for p in prompts]) for n, w in words.items()}
    fit(sets, models, tmp_path / "out", settings=settings(health=False))
    for name, contrast in sets.items():
        pairing = es.LayerPairing.from_pretrained(tmp_path / "out" / name)
        assert pairing.settings["unit"] == "nats" and pairing.settings["held_out"] == 5
        fitter, tokenizer = settings(health=False), tiny_tokenizer()
        fitter.fit(*models, contrast, expert_tokenizer=tokenizer, target_tokenizer=tokenizer)
        for found, alone in zip(pairing.effects, fitter.pairing_.effects, strict=True):
            assert found[:2] == alone[:2] and found[2] == pytest.approx(alone[2], abs=1e-4)


def test_vectors_are_those_of_fits_one_by_one(folder, models, tmp_path):
    with Seen(models[0]) as seen:
        index = fit(folder, models, tmp_path / "out")
    assert seen.examples == index["texts"] == 80  # 20 shared, 20 of each concept's own
    assert [entry["name"] for entry in index["concepts"]] == sorted(NAMES)
    assert index == json.loads((tmp_path / "out" / "index.json").read_text())
    for entry in index["concepts"]:
        contrast = es.ContrastSet.from_file(folder / f"{entry['name']}.jsonl")
        alone = settings().fit(
            *models, contrast, expert_tokenizer=tiny_tokenizer(), target_tokenizer=tiny_tokenizer()
        )
        vectors = es.SteeringVectors.from_pretrained(tmp_path / "out" / entry["folder"])
        assert vectors.layers == alone.layers == tuple(entry["layers"])
        assert vectors.metadata["examples"] == {"count": 40, "positive": 20} == entry["examples"]
        assert vectors.metadata["concept"]["contrast"] == contrast.digest
        for layer in alone.layers:
            torch.testing.assert_close(
                vectors.vectors[layer], alone.vectors[layer], rtol=1e-3, atol=1e-4
            )


def test_only_what_is_missing_is_made(folder, models, tmp_path):
    index = fit(folder, models, tmp_path / "out")
    vectors = {n: tmp_path / "out" / n / "steering_vectors.safetensors" for n in NAMES}
    vectors["two"].with_suffix(".json").unlink()  # it is written last
    times = {name: path.stat().st_mtime_ns for name, path in vectors.items()}
    with Seen(models[0]) as seen:
        assert fit(folder, models, tmp_path / "out") == index
    assert seen.examples == 0
    changed = {n for n, path in vectors.items() if path.stat().st_mtime_ns != times[n]}
    assert changed == {"two"}
    (folder / "four.jsonl").write_text("\n".join(map(json.dumps, rows(3))))
    with pytest.warns(es.HealthWarning, match="^concept four: directions from two halves"):
        again = fit(folder, models, tmp_path / "out")["concepts"]
    assert [entry["name"] for entry in again] == ["four", *sorted(NAMES)]
    assert all(path.stat().st_mtime_ns == times[n] for n, path in vectors.items() if n != "two")


def test_vectors_of_another_fit_are_not_replaced(folder, models, tmp_path):
    fit(folder, models, tmp_path / "out")
    with pytest.raises(es.ArtifactError, match="one.* other settings or models|three.*|two.*"):
        fit(folder, models, tmp_path / "out", settings=settings(rule="highest"))
    (folder / "two.jsonl").write_text("\n".join(map(json.dumps, rows(7))))
    with pytest.raises(es.ArtifactError, match="two.* fitted from another contrast set"):
        fit(folder, models, tmp_path / "out")


def test_bad_sets_are_all_named_before_a_model_runs(folder, models, tmp_path):
    (folder / "bad.jsonl").write_text('{"text": "a", "label": 3}')
    (folder / "few.jsonl").write_text("\n".join(map(json.dumps, rows(0)[17:25])))
    with Seen(models[0]) as seen, pytest.raises(es.ContrastSetError) as caught:
        fit(folder, models, tmp_path / "out")
    assert "2 of 5 contrast sets cannot be used" in str(caught.value) and seen.examples == 0
    assert "'label' must be 0 or 1, came 3" in str(caught.value)
    assert "few: fitting needs at least 4 examples of each label, came 3" in str(caught.value)


def test_a_concept_that_cannot_be_fitted_leaves_the_others(models, tmp_path):
    same = es.ContrastSet.from_texts(["w1"] * 10, [0, 1] * 5)  # no direction tells them apart
    contrasts = {"good": es.ContrastSet.from_dataset(rows(0)), "same": same}
    with pytest.raises(ValueError, match="(?s)1 of 2 concepts could not be fitted.*same: "):
        fit(contrasts, models, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [e["name"] for e in index["concepts"]] == ["good"] and list(index["failed"]) == ["same"]


@pytest.mark.parametrize(
    "contrasts, reason",
    [
        ({}, "there is no contrast set"),
        *(
            ({name: es.ContrastSet.from_texts(["a", "b"], [0, 1])}, reason)
            for name, reason in {
                "a/b": "the concept becomes the name of a file or folder.*separator",
                "..": "the one above",
                "": "must not be empty",
                "a\0": "control characters",
                3: "not int",
                "captures": "stands for something else",
            }.items()
        ),
        ({"a": ["text"]}, "must be contrast sets by name"),
        ("nowhere", "contrasts must be a folder, there is none at nowhere"),
    ],
)
def test_no_contrast_sets_is_an_error(models, tmp_path, contrasts, reason):
    with pytest.raises(es.ContrastSetError, match=reason):
        fit(contrasts, models, tmp_path / "out")


@pytest.mark.parametrize("name", ["...jsonl", "index.json.jsonl", " .jsonl"])
def test_a_file_whose_concept_could_not_have_a_folder_is_refused(folder, models, tmp_path, name):
    (folder / name).write_text("\n".join(map(json.dumps, rows(0))))
    with pytest.raises(es.ContrastSetError, match="contrasts: "):
        fit(folder, models, tmp_path / "out")
    assert not list(tmp_path.glob("steering_vectors*")) and not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(folder, models, tmp_path):
    (folder / "one.json").write_text("")
    with pytest.raises(es.ContrastSetError, match="'one' is taken; rename it"):
        fit(folder, models, tmp_path / "out")


def test_the_command_line_fits_a_folder(folder, models, tmp_path):
    for name, model in zip(("expert", "target"), models):
        save(model, tmp_path / name)
    arguments = ["fit", "--expert", tmp_path / "expert", "--target", tmp_path / "target"]
    arguments += ["--contrast", folder, "--out", tmp_path / "out", "--device", "cpu"]
    arguments += ["--pairs", 2, "--null", 0]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "vectors of 3 concepts, from 80 different texts" in done.stdout
    document = json.loads(run(*arguments, "--json").stdout)
    assert len(document["concepts"]) == 3 and document["failed"] == {}
    one = [*arguments[:5], "--contrast", folder / "one.jsonl", "--out", tmp_path / "alone"]
    one += ["--captures", tmp_path / "states", "--device", "cpu", "--pairs", 2, "--null", 0]
    assert run(*one).returncode == 0
    alone = es.SteeringVectors.from_pretrained(tmp_path / "alone")
    again = es.SteeringVectors.from_pretrained(tmp_path / "out" / "one")
    assert alone.layers == again.layers and (tmp_path / "states" / "expert").is_dir()
    done = run(*arguments, "--rule", "random")
    assert done.returncode == 2 and "with other settings or models" in done.stderr
