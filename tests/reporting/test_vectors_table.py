import io
import json

import pytest
import torch
from rich.console import Console

from expertsteer import ArtifactError, SteeringVectors
from expertsteer.reporting.vectors_table import vectors_table
from expertsteer.vectors.card import model_card


def text_of(vectors):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(vectors_table(vectors, "mine"))
    return console.export_text()


def test_vectors_by_hand_are_shown_with_norms_and_scales():
    vectors = SteeringVectors({2: 3 * torch.eye(5)[0], 7: torch.eye(5)[1]}, {7: 4.0})
    document = vectors.describe()
    assert document["layers"] == [
        {"layer": 2, "norm": 3.0, "scale": 1.0},
        {"layer": 7, "norm": 1.0, "scale": 4.0},
    ]
    assert "width 5" in text_of(vectors)


def test_figures_follow_their_layer_even_when_the_rule_chose_another_order():
    metadata = {
        "pairing": {
            "rule": "lowest",
            "pairs": [
                {"expert_layer": 5, "target_layer": 7, "nats": 0.25},
                {"expert_layer": 1, "target_layer": 2, "nats": None},
            ],
        },
        "figures": {"validation_auc": [0.9, 0.7]},
        "expert": {"name": "sage", "architecture": "Sage", "num_layers": 6, "hidden_size": 8},
    }
    vectors = SteeringVectors({2: torch.ones(5), 7: torch.ones(5)}, metadata=metadata)
    first, second = vectors.describe()["layers"]
    assert (first["expert_layer"], first["validation_auc"], first["nats"]) == (1, 0.7, None)
    assert (second["expert_layer"], second["validation_auc"], second["nats"]) == (5, 0.9, 0.25)
    shown = text_of(vectors)
    assert "sage (Sage, 6 layers, width 8, revision not recorded)" in shown and "lowest" in shown
    json.dumps(vectors.describe(), allow_nan=False)


def test_the_effect_that_a_pair_was_chosen_by_stands_in_its_row():
    pair = {"expert_layer": 5, "target_layer": 7, "nats": 0.25, "effect": 1.625}
    measured = {"rule": "effect", "effect": "AUC of something", "unit": "AUC", "why": "no texts"}
    metadata = {"pairing": measured | {"pairs": [pair]}}
    vectors = SteeringVectors({7: torch.ones(5)}, metadata=metadata)
    assert vectors.describe()["layers"][0]["effect"] == 1.625
    shown = text_of(vectors)
    assert "1.625" in shown and "pairing: effect (AUC): AUC of something; no texts" in shown
    assert "AUC of something; no texts" in model_card(vectors.describe())


def test_calibrations_are_shown_and_damaged_ones_told():
    found = {"strength": 0.25, "layers": [2], "divergence": 0.0987, "budget": 0.1, "measure": "kl"}
    vectors = SteeringVectors({2: torch.ones(5)}, metadata={"calibration": [found]})
    assert "strength 0.25 at layers (2,) costs 0.0987 of 0.1 (kl)" in text_of(vectors)
    broken = SteeringVectors({2: torch.ones(5)}, metadata={"calibration": [{"strength": "x"}]})
    with pytest.raises(ArtifactError, match="^metadata: .*calibration.*; correct it"):
        text_of(broken)


def test_a_selection_keeps_its_figures():
    metadata = {
        "pairing": {
            "rule": "lowest",
            "pairs": [
                {"expert_layer": 0, "target_layer": 4, "nats": 1.0},
                {"expert_layer": 3, "target_layer": 1, "nats": 2.0},
            ],
        },
        "figures": {"validation_auc": [0.6, 0.8]},
    }
    vectors = SteeringVectors({1: torch.ones(3), 4: torch.ones(3)}, metadata=metadata).select([1])
    (row,) = vectors.describe()["layers"]
    assert (row["layer"], row["expert_layer"], row["validation_auc"]) == (1, 3, 0.8)
