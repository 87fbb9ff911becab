"""Uploads and downloads against a Hub in this process, and the model card."""

import re
from dataclasses import replace

import pytest
import torch

import expertsteer as es
from expertsteer.vectors.card import model_card
from helpers.command import python
from helpers.fake_hub import serving

# In a process of its own: the Hub's address and the offline switch are read when it is imported.
ROUND_TRIP = """
import torch
import expertsteer as es

first = es.SteeringVectors({1: torch.arange(4.0)}, {1: 2.0})
address = first.push_to_hub("someone/direction", private=True, token="hf_of_someone")
assert "/someone/direction/commit/" in address, address
second = 3.0 * first
second.push_to_hub("someone/direction", revision="stronger", card="# by hand")
second.push_to_hub("someone/direction", revision="stronger")  # nothing new, still no error
same = es.SteeringVectors.from_pretrained("someone/direction")
assert same.fingerprint == first.fingerprint
strong = es.SteeringVectors.from_pretrained("someone/direction", revision="stronger")
assert strong.fingerprint == second.fingerprint
commit = address.rsplit("/", 1)[1]
pinned = es.SteeringVectors.from_pretrained("someone/direction", revision=commit)
assert pinned.fingerprint == first.fingerprint
for name, revision in (("someone/else", None), ("someone/direction", "gone")):
    try:
        es.SteeringVectors.from_pretrained(name, revision=revision)
    except ValueError as error:
        print(error)
    else:
        raise SystemExit(f"{name} at {revision} was found")
"""


def test_vectors_travel_over_the_hub_with_revisions(tmp_path):
    with serving() as (hub, address):
        printed = python(
            *("-c", ROUND_TRIP),
            HF_ENDPOINT=address,
            HF_HUB_OFFLINE="0",
            HF_HOME=str(tmp_path),
            NO_PROXY="127.0.0.1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
    assert printed.count("neither a folder here nor a Hub repository") == 2
    assert "revision 'gone'" in printed
    assert hub.private == {"someone/direction": True}
    assert "Bearer hf_of_someone" in hub.tokens
    names = {"README.md", "steering_vectors.json", "steering_vectors.safetensors"}
    assert set(hub.files("someone/direction")) >= names
    card = hub.files("someone/direction")["README.md"].decode()
    assert 'from_pretrained("someone/direction")' in card
    assert hub.branches["someone/direction"].keys() == {"main", "stronger"}


def test_a_repository_that_cannot_be_written_is_one_clear_error():
    with pytest.raises(ValueError, match="repo_id 'nobody/nothing' could not be written"):
        es.SteeringVectors({0: torch.ones(3)}).push_to_hub("nobody/nothing")


def fitted(make_states):
    expert, target = make_states(width=10, seed=1), make_states(width=12, seed=2)
    alignment, pairing = es.align(expert, target), es.LayerPairing(((0, 1, 0.7),), rule="lowest")
    vectors = es.fit_vectors(expert, target, alignment, pairing)
    named = {"target": {"name": "some/target", "num_layers": 3, "hidden_size": 12}}
    return replace(vectors, metadata=vectors.metadata | named)


def test_the_card_names_models_layers_and_settings(make_states, tmp_path):
    from huggingface_hub import ModelCard

    vectors = fitted(make_states)
    card = ModelCard(model_card(vectors.describe()))
    assert card.data.base_model == "some/target" and card.data.library_name == "expertsteer"
    assert "Not measured" in card.text and "es.attach(model, vectors)" in card.text
    assert f"{vectors.scales[1]:.4g}" in card.text and "bandwidth 3.0" in card.text
    local = tmp_path / "private" / "my-model"
    local.mkdir(parents=True)
    hidden = replace(vectors, metadata=vectors.metadata | {"target": {"name": str(local)}})
    text = model_card(hidden.describe())
    assert "my-model" in text and str(tmp_path) not in text and "base_model" not in text
    assert "made by hand" in model_card(es.SteeringVectors({0: torch.ones(2)}).describe())


def test_the_card_shows_the_controls_and_their_verdict(make_states):
    from expertsteer.evaluation.comparison import Comparison, ComparisonRow
    from expertsteer.evaluation.evaluation import Evaluation
    from expertsteer.evaluation.statistics import Interval, paired_test

    values = (1.0, 0.0) * 6
    test = paired_test(values, values)
    rows = [
        ComparisonRow("unsteered", "none", Interval(0.5, 0.2, 0.8), values, 0.0),
        ComparisonRow(
            "ours | best",
            "expert",
            Interval(0.5, 0.2, 0.8),
            values,
            0.09,
            layers=(1,),
            strength=0.4,
            against={"unsteered": test, "random directions, best of 1": test},
        ),
    ]
    found = Evaluation("answers", "ours | best", Comparison(tuple(rows), (), {}, 0.1, "kl", 0, 1.0))
    vectors = fitted(make_states).with_evaluation(found)
    text = model_card(vectors.describe())
    shown = re.sub(r"\\(.)", r"\1", text)  # as a reader of markdown shows it
    assert found.verdict in shown and "ours \\| best" in text
    assert "0.500 [0.200, 0.800]" in text and "values" not in str(vectors.metadata["evaluation"])
    again = vectors.with_evaluation(found)
    assert len(again.metadata["evaluation"]) == 1
    for name in ("layers", "strength", "divergence"):  # edited by hand: no text gets into a cell
        told = again.metadata["evaluation"][0]
        edited = told | {"rows": [told["rows"][1] | {name: ["<b>"]}]}
        with pytest.raises(es.ArtifactError, match="provenance"):
            model_card(replace(again, metadata=again.metadata | {"evaluation": [edited]}))
