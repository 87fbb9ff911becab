"""Health says what the target tells apart by itself, which case that is, where all layers fail."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import expertsteer as es
from expertsteer.fitting.halves import draw_halves
from expertsteer.fitting.health_report import Health, PairHealth
from expertsteer.fitting.thresholds import findings, least_auc
from expertsteer.fitting.told_apart import told_apart
from expertsteer.reporting.vectors_table import health_table
from expertsteer.states.states import HiddenStates

COUNTS = {
    "examples": 200,
    "positive": 100,
    "expert_width": 6,
    "target_width": 6,
    "cuts": 4,
    "half_rows": 100,
    "seed": 0,
}
# Layers with an even number hold the label beside the noise.
PAIRS = ((0, 0), (2, 1), (1, 2), (3, 3))


def made(seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(4, 200, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(200) % 2
    states[::2, :, 0] += 3.0 * labels
    return HiddenStates(states, labels, keys=torch.arange(200), model={"name": "made up"})


@pytest.fixture(scope="module")
def sides():
    return made(0), made(1)


def checked(expert, target, method="mean_difference", **options):
    pairing = es.LayerPairing(tuple((e, t, float("nan")) for e, t in PAIRS))
    alignment = es.align(expert, target, pairing=pairing)
    vectors = es.fit_vectors(expert, target, alignment, pairing, method)
    return es.health(expert, target, alignment, pairing, vectors, progress=False, **options)


@pytest.mark.parametrize("method", ["mean_difference", "rfm"])
def test_each_side_is_known_by_its_own_states(sides, method):
    found = checked(*sides, method)
    for pair in found.pairs:
        assert (pair.auc > 0.9) == (pair.expert_layer % 2 == 0)
        assert (pair.target_auc > 0.9) == (pair.target_layer % 2 == 0)
        assert all(value > 0.9 or value < 0.65 for value in (pair.auc, pair.target_auc))
    starts = ("expert (AUC", "the expert tells", "the target tells", "neither the expert")
    layers = ("layers 0->0:", "layers 2->1:", "layers 1->2:", "layers 3->3:")
    *notes, beforehand = found.notes
    assert "target layer 0" in beforehand and "GGUF" in beforehand  # which exports refuse later
    for note, start, where in zip(notes, starts, layers, strict=True):
        assert note.startswith(start) and where in note
    assert not set(found.notes) & set(found.warnings)  # to know, not to mend


def test_the_targets_auc_is_that_of_a_plain_loop_over_the_halves(sides):
    target = sides[1]
    halves = draw_halves(target.labels, target.pairs, 3, 2000, seed=5)
    for pair in checked(*sides, cuts=3, seed=5).pairs:
        aucs = []
        for rows, rest in zip(halves.rows, halves.rest, strict=True):
            x, y = target.layer(pair.target_layer), target.labels
            direction = x[rows][y[rows] == 1].mean(0) - x[rows][y[rows] == 0].mean(0)
            positive, negative = ((x[rest] @ direction)[y[rest] == label] for label in (1, 0))
            aucs.append((positive[:, None] > negative).double().mean())
        assert pair.target_auc == pytest.approx(float(torch.stack(aucs).mean()), abs=1e-9)


@pytest.mark.parametrize("method", ["mean_difference", "rfm"])
def test_what_all_states_share_does_not_hide_the_classes(sides, method):
    expert, target = (replace(side, states=side.states.float()) for side in sides)
    # The states differ in single precision; an entry 1000 times as large is the same in all.
    shift = torch.tensor([0.0, 0, 0, 0, 0, 4096.0])
    plain, beside = (
        checked(expert, side, method).pairs
        for side in (target, replace(target, states=target.states + shift))
    )
    for one, other in zip(plain, beside, strict=True):
        assert one.target_auc == pytest.approx(other.target_auc, abs=5e-3)


def test_a_target_layer_without_anything_to_find_has_no_figure(sides):
    expert, target = sides
    states = target.states.clone()
    states[2] = 0.1
    pairing = es.LayerPairing(((0, 0, float("nan")), (1, 2, float("nan"))))
    alignment = es.align(expert, target, pairing=pairing)
    vectors = es.fit_vectors(expert, target, alignment, pairing, "rfm")
    spoilt = replace(target, states=states)
    first, second = es.health(expert, spoilt, alignment, pairing, vectors, progress=False).pairs
    assert first.target_auc > 0.9 and second.target_auc is None and second.auc is not None


def by_hand(*aucs):
    return tuple(PairHealth(i, 9 - i, auc=e, target_auc=t) for i, (e, t) in enumerate(aucs))


def test_the_cases_by_hand():
    limit = least_auc(COUNTS)
    assert limit == 0.65
    pairs = by_hand((0.9, 0.8), (0.7, 0.95), (0.65, 0.66), (None, 0.9), (0.9, None))
    both, only_target = told_apart(pairs, limit)  # at the limit is not above it
    assert "expert (AUC 0.70 to 0.90) and target (AUC 0.80 to 0.95)" in both
    assert "layers 0->9, 1->8:" in both and "layers 2->7:" in only_target
    assert told_apart(by_hand((None, None)), limit) == ()


def found_in(pairs):
    return findings(pairs, COUNTS, {}, {p.expert_layer: "" for p in pairs})


def test_one_message_tells_that_no_layer_serves():
    (finding,) = found_in(by_hand((0.5, 0.9), (0.62, 0.9)))
    assert finding.check == "auc" and len(finding.pairs) == 2
    assert "no paired expert layer tells the classes apart" in finding.message
    assert "AUC 0.50 to 0.62" in finding.message and "above 0.65" in finding.message
    (finding,) = found_in(by_hand((0.5, 0.9), (0.7, 0.9)))
    assert finding.check == "auc" and finding.pairs == ((0, 9),)
    assert "no paired expert layer" not in finding.message
    # A pair that was not measured is no proof of a layer that serves.
    told = [f.message for f in found_in(by_hand((0.5, 0.9), (None, 0.9))) if f.check == "auc"]
    assert len(told) == 1 and "no paired expert layer" in told[0] and "0->9;" in told[0]
    assert found_in(by_hand((0.7, 0.5))) == ()  # the target's failing is a note, no finding


def test_documents_from_before_are_read_and_new_ones_come_back(sides):
    found = checked(*sides)
    document = found.to_dict()
    assert Health.from_dict(document) == found and document["notes"]
    del document["notes"]
    for pair in document["pairs"]:
        del pair["target_auc"]
    old = Health.from_dict(document)
    assert old.notes == () and {p.target_auc for p in old.pairs} == {None}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(health_table(found), health_table(old))
    new, _, before = console.export_text().rpartition("health: 200 examples")
    assert new.count("note: ") == len(found.notes) and "note: " not in before
    assert "…" not in new and f"{found.pairs[0].target_auc:.2f}" in new
